"""The paper's claims, measured: on tables made by hand, and in the README as in the committed runs."""

import numpy as np
import pandas as pd
import pytest

from src import claims
from src.config import RunConfig
from src.runs import COMMITTED, ROOT, load_runs


def induction_runs(scores: dict[str, list[float]]) -> pd.DataFrame:
    """Runs of the main setting: the one head's sink score of each seed, by attention type."""
    return pd.DataFrame(
        RunConfig(attention_type=name, positional_type="add", seed=seed).to_dict()
        | {"state": "finished", "eval/acc_induction": 1.0}
        | dict.fromkeys(("1_0_rel_attn_bos_global", "1_0_mag_attn_bos_global"), score)
        for name, values in scores.items()
        for seed, score in enumerate(values)
    )


@pytest.mark.parametrize(
    ("numbers", "text"),
    [((0.8, 0.65, 0.951), "0.80 [0.65, 0.95]"), ((1, 1, 1), "1.00"), ((-0.5, -0.6, 0), "−0.50 [−0.60, 0.00]")],
)
def test_an_interval_in_words(numbers, text):
    assert claims.interval(*numbers) == text


def test_sinks_are_counted_by_type():
    runs = induction_runs({"softmax": [0.95, 0.99], "sigmoid_unnorm": [0.95, 0.1]})
    assert claims.sinks_by_type(runs) == "share of heads: softmax 1.00, sigmoid_unnorm 0.50 [0.00, 1.00]"


def test_runs_that_solve_the_task_are_counted_by_learning_rate():
    induction = induction_runs({"softmax": [0.9, 0.9], "uniform": [0.1]}).assign(lr=[0.1, 1e-3, 1e-3])
    induction.loc[0, "eval/acc_induction"] = 0.95
    classification = pd.DataFrame([RunConfig(task="classification").to_dict() | {"state": "finished", "eval/acc": 1}])
    assert claims.learned(pd.concat([induction, classification])) == (
        "runs with accuracy above 0.95, induction: lr 0.001 1 of 1, lr 0.1 0 of 1; classification: lr 0.001 1 of 1"
    )


def test_the_effect_of_normalising_is_a_mean_over_pairs_of_a_seed():
    runs = induction_runs({"sigmoid_norm": [0.95, 0.95, 0.1], "sigmoid_unnorm": [0.1, 0.1, 0.1, 0.95]})
    values = claims.scores.sink_shares(claims.induction_main(runs))
    assert claims.effect_of_normalising(runs, values, "sigmoid") == "+0.67 [+0.00, +1.00]"  # seed 3 has no pair


def test_a_table_has_a_row_for_each_kernel_and_leaves_blank_what_was_not_run():
    table = claims.sink_table(induction_runs({"softmax": [0.95], "mlp_unnorm": [0.1]})).splitlines()
    assert [line.split(" | ")[0].strip("| ") for line in table[2:]] == [
        *("softmax", "sigmoid", "elu · elu", "elu", "linear", "mlp")
    ]
    assert table[2] == "| softmax | 1.00 |  | 1.00 |  |"
    assert table[-1] == "| mlp |  | 0.00 |  | 0.00 |"


def test_entropy_is_compared_at_the_start_and_at_the_end():
    history = {"history/step": np.array([0, 10]), "history/1_0_attn_entropy": np.array([1.0, 0.25])}
    runs = induction_runs({"softmax": [0.95]}).assign(**{name: [values] for name, values in history.items()})
    assert claims.entropy_fall(runs, "softmax", layer=1) == "1.00 → 0.25"


def test_the_readme_says_what_the_committed_runs_say():
    readme, runs = (ROOT / "README.md").read_text(), load_runs(COMMITTED, history=True)
    for claim, measure in claims.MEASURED.items():
        assert f"({claim})" in readme
        assert measure(runs) in readme
    assert claims.sink_table(runs) in readme
    assert claims.sparsity_table(runs) in readme


@pytest.mark.parametrize(("source", "words"), [("nowhere.parquet", "nowhere.parquet"), ("empty.parquet", "empty")])
def test_a_source_without_runs_is_one_sentence(source, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    pd.DataFrame().to_parquet("empty.parquet")
    assert claims.main([source]) == 1
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert words in message
    assert message.count("\n") == 1
