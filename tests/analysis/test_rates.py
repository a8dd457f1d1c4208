"""The learning rate of each function, chosen by its loss alone."""

import numpy as np
import pandas as pd
import pytest
from of_trigger import trigger

import train
from src.analysis import mitigations, rates
from src.config import ConfigError, RunConfig


def test_the_rate_is_chosen_by_loss_alone():
    """softmax1 has a sink at the rate with the higher loss."""
    rows = [trigger("softmax", seed, 0.99) for seed in range(3)]
    rows += [trigger("softmax1", seed, 0.05, lr=1e-3, loss=1e-5) for seed in range(3)]
    rows += [trigger("softmax1", seed, 0.9, lr=3e-3, loss=1e-3) for seed in range(3)]
    runs = pd.DataFrame(rows)
    best = rates.at_best_rates(runs)
    assert best.groupby("attention_type")["lr"].unique().map(list).to_dict() == {
        "softmax": [3e-3], "softmax1": [1e-3],
    }  # fmt: skip
    assert len(best) == 6


def test_a_rate_is_judged_by_the_seeds_that_all_rates_have_and_divergence_is_an_infinite_loss():
    rows = [trigger("softmax", 0, 1, lr=1e-3, loss=2.0), trigger("softmax", 1, 1, lr=1e-3, loss=0.0)]
    rows += [trigger("softmax", 0, 1, lr=3e-3, loss=1.0)]
    assert rates.best_rate(pd.DataFrame(rows)) == 3e-3  # of seed 0 alone
    rows += [trigger("softmax", 0, np.nan, lr=1e-2, loss=np.nan, state="diverged")]
    assert rates.best_rate(pd.DataFrame(rows)) == 3e-3
    diverged = [trigger("softmax", 0, np.nan, lr=lr, loss=np.nan, state="diverged") for lr in (1e-2, 1e-3)]
    assert rates.best_rate(pd.DataFrame(diverged)) == 1e-3


def test_rates_are_chosen_apart_for_each_optimiser():
    rows = [trigger("softmax", 0, 1, optimizer="sgd", lr=lr, loss=loss) for lr, loss in ((1.0, 0.1), (0.1, 0.5))]
    rows += [trigger("softmax", 0, 1, lr=lr, loss=loss) for lr, loss in ((1e-2, 0.3), (1e-3, 0.2))]
    columns = mitigations.by_optimizer(pd.DataFrame(rows), "trigger")
    best = {label: row["lr"] for label, rows in columns.items() for _, row in rows.iterrows()}
    assert best == {"gradient descent": 1.0, "AdamW": 1e-3}


def sweep(*kinds: str) -> list[RunConfig]:
    return [
        RunConfig(task="trigger", attention_type=kind, lr=lr, seed=seed)
        for kind in kinds
        for lr in (1e-3, 3e-3)
        for seed in range(3)
    ]


def test_of_a_sweep_the_runs_at_the_best_rate_are_left():
    """Judged by what the log has of seed 0; each function has its own."""
    rows = [trigger("softmax", 0, 1, lr=lr, loss=lr) for lr in (1e-3, 3e-3)]
    rows += [trigger("softmax1", 0, 1, lr=lr, loss=-lr) for lr in (1e-3, 3e-3)]
    left = rates.points_at_best_rates(sweep("softmax", "softmax1"), pd.DataFrame(rows))
    chosen = [(config.attention_type, config.lr, config.seed) for config in left]
    assert chosen == [("softmax", 1e-3, seed) for seed in range(3)] + [("softmax1", 3e-3, seed) for seed in range(3)]


def test_optimisers_whose_rates_would_not_suit_each_other():
    rates_of = {"sgd": (1.0, 0.1), "muon": (1e-2, 1e-3)}
    points = [RunConfig(task="trigger", optimizer=name, lr=lr) for name, lrs in rates_of.items() for lr in lrs]
    rows = [trigger("softmax", 0, 1, optimizer=p.optimizer, lr=p.lr, loss=p.lr) for p in points]
    left = rates.points_at_best_rates(points, pd.DataFrame(rows))
    assert [(config.optimizer, config.lr) for config in left] == [("sgd", 0.1), ("muon", 1e-3)]


def test_a_rate_without_a_run_is_refused():
    runs = pd.DataFrame([trigger("softmax", 0, 1, lr=1e-3)])
    with pytest.raises(ConfigError, match=r"best_lr needs a run of trigger with softmax at lr=0.003.*--seed=0"):
        rates.points_at_best_rates(sweep("softmax"), runs)


def test_the_command_line_refuses_to_choose_without_runs(tmp_path, capsys):
    sweep = ["--sweep", "sweeps/mitigations_backcopy.yaml", "--log", str(tmp_path / "none.db"), "--best_lr"]
    assert train.main(sweep) == 2
    assert "best_lr chooses by the runs of the log: there is no run log" in capsys.readouterr().err
    assert train.main(["--best_lr"]) == 2
    assert "--best_lr goes with --sweep" in capsys.readouterr().err
