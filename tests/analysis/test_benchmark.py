"""The benchmark's analysis on tables made by hand: best rates, profiles, tables, verdicts, figures."""

import contextlib
import dataclasses

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from of_trigger import trigger

from src.analysis import figures, hypotheses, mitigations
from src.config import RunConfig
from src.errors import LogError
from src.runs import ROOT, load_runs


@pytest.fixture
def runs() -> pd.DataFrame:
    """Softmax sinks; softmax1 does not, but at a rate at which its loss is higher; relu_mean fails."""
    rows = [trigger("softmax", seed, 0.99 + 0.001 * seed) for seed in range(3)]
    rows += [trigger("softmax1", seed, 0.05 + 0.01 * seed, lr=1e-3, loss=1e-5) for seed in range(3)]
    rows += [trigger("softmax1", seed, 0.9, lr=3e-3, loss=1e-3) for seed in range(3)]
    rows += [trigger("relu_mean", seed, 0.0, error=0.8) for seed in range(3)]
    rows += [trigger("gated_head", seed, 0.999) for seed in range(3)]
    return pd.DataFrame(rows)


def test_a_profile_by_hand():
    heads = np.array([[0.2, 0.95, np.nan], [0.5, 0.5, 0.5]])
    found = mitigations.profile(heads, np.array([0.0, 0.3, 0.5, 0.9]))
    np.testing.assert_allclose(found, [[1, 0.5, 0.5, 0.5], [1, 1, 0, 0]])
    np.testing.assert_allclose(mitigations.area(heads), [0.575, 0.5])


@given(st.lists(st.floats(-1, 3), min_size=1, max_size=8))
def test_a_profile_falls_and_its_area_is_the_mean_clipped_score(scores):
    heads, thresholds = np.array([scores]), np.linspace(0, 1, 2001)
    found = mitigations.profile(heads, thresholds)[0]
    assert (np.diff(found) <= 0).all()
    assert found[:-1].mean() == pytest.approx(mitigations.area(heads)[0], abs=1e-3)


def test_old_tables_have_the_defaults_of_fields_that_they_lack(runs):
    old = runs.drop(columns=list(mitigations.NEW_FIELDS))
    filled = mitigations.with_fields(old)
    assert set(filled["optimizer"]) == {"adamw"}
    assert filled["use_residual"].all()
    mixed = mitigations.with_fields(pd.concat([old.iloc[:2], runs.iloc[3:5]], ignore_index=True))
    assert mixed[list(mitigations.NEW_FIELDS)].notna().all(axis=None)


def test_the_table_says_who_solves_with_which_sinks(runs):
    text = hypotheses.table(runs, "trigger")
    rows = {line.split(" | ")[0].strip("| "): line.split(" | ") for line in text.splitlines()[2:]}
    assert rows["softmax1"][1:4] == ["3 of 3", "0.001", "0.06 [0.04, 0.08]"]
    assert rows["relu_mean"][1] == "0 of 3"
    with pytest.raises(LogError, match="no run of backcopy"):
        hypotheses.table(runs, "backcopy")


def test_verdicts_follow_the_numbers(runs):
    assert hypotheses.theorem(runs).verdict == "holds"
    assert hypotheses.outlets(runs).verdict == "holds"
    assert hypotheses.gates(runs).verdict == "holds"
    sinkless = runs.assign(
        **{"0_0_abs_attn_bos": runs["0_0_abs_attn_bos"].where(runs["attention_type"] != "softmax", 0.5)}
    )
    assert hypotheses.theorem(sinkless).verdict == "does not hold"
    spread = runs.copy()
    spread.loc[spread["attention_type"] == "gated_head", "0_0_abs_attn_bos"] = [0.7, 0.95, 0.99]
    assert hypotheses.gates(spread).verdict == "open"
    with pytest.raises(LogError, match="no run of softmax, .* on trigger, no BOS"):
        hypotheses.without_anchor(runs)
    rows = [trigger("softmax", seed, 0.2, error=0.8, use_bos=False) for seed in range(2)]
    apart = pd.concat([runs, pd.DataFrame(rows)], ignore_index=True)
    assert hypotheses.without_anchor(apart) == hypotheses.Finding("solved: softmax 0 of 2", "holds")
    assert hypotheses.without_anchor(apart.assign(state="diverged")).verdict == "open"
    rows = [trigger("softmax1", seed, 0.0, error=(0.01, 0.8)[seed == 2], use_bos=False) for seed in range(3)]
    apart = pd.concat([apart, pd.DataFrame(rows)], ignore_index=True)
    assert hypotheses.freed(apart) == hypotheses.Finding("solved: softmax1 2 of 3", "holds")


def test_one_seed_is_a_hint_and_decides_nothing(runs):
    runs = runs[runs["seed"] == 0]
    found = hypotheses.gates(runs)
    assert found == hypotheses.Finding("BOS's weight: gated_head 1.00 (1 seed)", "open")
    assert "1.00 (1 seed)" in hypotheses.table(runs, "trigger")


def test_no_hypothesis_holds_by_one_seed():
    """A single counterexample may refute what is said of all runs."""
    runs = load_runs(mitigations.RESULTS)
    runs = mitigations.with_fields(runs[runs["seed"] == 0])
    found = {}
    for name, hypothesis in hypotheses.HYPOTHESES.items():
        with contextlib.suppress(LogError):
            found[name] = hypothesis(runs).verdict
    assert len(found) > 5
    assert "holds" not in found.values()


def test_what_no_run_measured_decides_nothing():
    runs = pd.DataFrame([*backcopy("adamw", 0.9, 5.0), *backcopy("adamw", 0.1, 1.0)])
    runs["attention_type"] = ["softmax"] * 3 + ["relu_mean"] * 3
    assert hypotheses.drains(runs).verdict == "open"  # without value drains
    runs["0_0_value_drain"] = [0.1] * 3 + [0.9] * 3
    assert hypotheses.drains(runs).verdict == "holds"
    for unable in ({"eval/acc": 0.1}, {"state": "diverged"}):
        with pytest.raises(LogError, match="no runs of softmax and relu_mean that solve backcopy"):
            hypotheses.drains(runs.assign(**unable))


def test_an_outlets_runs_are_counted_by_rate(runs):
    """At the rate that is not its best, where softmax1 puts its attention on BOS, too."""
    counts = "0 of 3 runs at lr 0.001, 3 of 3 runs at lr 0.003"
    assert hypotheses.on_the_anchor(runs, "trigger", ["softmax1"]) == counts
    assert hypotheses.outlets(runs).measured.endswith(f" (more than half in {counts})")


def test_an_outlet_is_judged_by_the_anchors_weight_not_its_share_of_the_row(runs):
    """All that is left of a row that the outlet has almost emptied may be on BOS."""
    rows = backcopy("adamw", 0.9, 1.0)
    for row in rows:
        row.update({"attention_type": "softmax1", "0_0_abs_attn_bos": 0.1})
    both = pd.concat([runs, pd.DataFrame(rows)], ignore_index=True)
    assert "backcopy: softmax1 0.10 (more than half in 0 of 3 runs at lr 0.01)" in hypotheses.outlets(both).measured
    assert hypotheses.outlets(both).verdict == "holds"
    both.loc[both["task"] == "backcopy", "0_0_abs_attn_bos"] = 0.9
    assert hypotheses.outlets(both).verdict == "does not hold"


def test_what_does_not_solve_the_task_says_nothing_of_sinks(runs):
    with pytest.raises(LogError, match="no run of relu_mean solves trigger"):
        hypotheses.sinks(runs, "trigger", ("relu_mean",))


@pytest.mark.parametrize(
    ("parts", "expected"),
    [((True, True), "holds"), ((True, None), "open"), ((None, False), "does not hold"), ((), "open")],
)
def test_a_verdict_of_parts(parts, expected):
    assert hypotheses.verdict(*parts) == expected


def test_every_hypothesis_is_told_whatever_the_table_has(runs):
    text = hypotheses.hypotheses(runs)
    assert len(text.splitlines()) == 2 + len(hypotheses.HYPOTHESES)
    assert "not measured" in text


def test_figures_show_every_function(runs):
    overview = figures.overview(runs)
    assert [label.get_text() for label in overview.axes[0].get_yticklabels()] == [
        "softmax", "softmax1", "relu, mean", "head gate",
    ]  # fmt: skip
    texts = [text.get_text() for text in overview.axes[0].texts]
    assert "0.00 ×" in texts
    assert "0.99" in texts
    profiles = figures.sink_profiles(runs)
    assert [axes.get_title() for axes in profiles.axes] == ["the paper's", "with an outlet", "sparse", "with a gate"]


def under(optimizer: str, kind: str, bos: float, lr: float = 3e-3) -> list[dict]:
    return [trigger(kind, seed, bos + 0.01 * seed, optimizer=optimizer, lr=lr) for seed in range(3)]


def test_optimizers_beside_each_other(runs):
    """Of the functions that others than AdamW were tried with."""
    assert mitigations.by_optimizer(runs, "trigger") == {}
    more = [*under("sgd", "softmax", 0.9, lr=0.01), *under("sgd", "softmax1", 0.8), *under("muon", "softmax", 0.1)]
    runs = pd.concat([runs, pd.DataFrame(more)], ignore_index=True)
    found = mitigations.by_optimizer(runs, "trigger")
    assert {label: list(rows.index) for label, rows in found.items()} == {
        "AdamW": ["softmax", "softmax1"], "gradient descent": ["softmax", "softmax1"], "Muon": ["softmax"],
    }  # fmt: skip
    assert found["gradient descent"].loc["softmax", "area"][0] == pytest.approx(0.91)
    rows = hypotheses.optimizers_table(runs, "trigger").splitlines()
    assert rows[0].split(" | ")[1:] == ["AdamW", "gradient descent", "Muon |"]
    assert "0.91 [0.89, 0.93]; 3 of 3, lr 0.01" in rows[2]
    assert hypotheses.one_optimizer(runs).verdict == "does not hold"
    unsure = [*under("momentum", "softmax", 0.5), *under("muon", "softmax", 0.1)]
    unsure = pd.concat([runs[runs["optimizer"] == "adamw"], pd.DataFrame(unsure)], ignore_index=True)
    assert (
        hypotheses.one_optimizer(unsure).verdict == "does not hold"
    )  # one in the middle decides nothing, two others do
    assert hypotheses.one_optimizer(unsure[unsure["optimizer"] != "muon"]).verdict == "open"
    alike = runs[(runs["optimizer"] != "muon") & (runs["attention_type"] == "softmax")]
    assert hypotheses.one_optimizer(alike).verdict == "holds"
    figure = figures.optimizers(runs)
    assert [axes.get_title() for axes in figure.axes if axes.get_title()] == ["trigger"]
    assert {"0.99", "0.91", "0.11"} <= {text.get_text() for text in figure.axes[0].texts}
    assert hypotheses.tables(runs).endswith(hypotheses.optimizers_table(runs, "trigger"))


def backcopy(optimizer: str, share: float, peak: float, accuracy: float = 0.99) -> list[dict]:
    """Runs of softmax on backcopy."""
    rows = []
    for seed in range(3):
        config = RunConfig(task="backcopy", seed=seed, optimizer=optimizer)
        measured = {"eval/loss": 1.0, "eval/acc": accuracy, "0_0_rel_attn_bos_global": share + 0.01 * seed}
        measured |= {"0_residual_peak": peak + 0.1 * seed, "state": "finished", "hash": config.hash}
        rows.append(config.to_dict() | measured)
    return rows


@pytest.mark.parametrize(
    ("descent", "verdict"),
    [
        ((0.8, 1.0), "holds"),
        ((0.8, 9.0), "does not hold"),
        ((0.8, 4.9), "open"),
        ((0.1, 1.0), "does not hold"),
        ((0.8, 1.0, 0.2), "open"),
    ],
)
def test_gradient_descent_beside_adamw_on_backcopy(descent, verdict):
    runs = pd.DataFrame([*backcopy("adamw", 0.9, 5.0), *backcopy("sgd", *descent)])
    found = hypotheses.descents(runs)
    assert found.verdict == verdict
    assert "AdamW: 3 of 3 solve it at lr 0.01, BOS's share 0.91" in found.measured
    with pytest.raises(LogError, match="under both"):
        hypotheses.descents(runs[runs["optimizer"] == "adamw"])


def test_a_table_without_the_benchmarks_runs_is_a_sentence():
    runs = pd.DataFrame([dataclasses.asdict(RunConfig(lr=0.5)) | {"state": "running"}])
    for figure in (figures.overview(runs), figures.sink_profiles(runs), figures.optimizers(runs)):
        assert any("Nothing to show" in text.get_text() for text in figure.texts)


def test_runs_of_older_code_count_where_they_have_the_numbers(runs):
    runs.loc[runs["seed"] == 0, ["0_0_value_drain", "0_residual_peak"]] = np.nan
    rows = mitigations.summaries(runs)["trigger"]
    assert rows.loc["softmax", "value drain"] == pytest.approx((0.1, 0.1, 0.1))
    assert rows.loc["softmax", "runs"] == 3


@pytest.mark.filterwarnings("error")
def test_what_diverged_in_every_run_has_a_row_and_no_measures(runs):
    gone = [trigger("sparsemax", seed, np.nan, np.nan, np.nan, state="diverged") for seed in range(3)]
    row = mitigations.summaries(pd.concat([runs, pd.DataFrame(gone)], ignore_index=True))["trigger"].loc["sparsemax"]
    assert (row["runs"], row["solved"]) == (3, 0)
    assert np.isnan(row["area"])


def test_the_papers_other_functions_are_left_out(runs):
    runs = pd.concat([runs, pd.DataFrame([trigger("mlp_norm", 0, 0.5)])], ignore_index=True)
    assert "mlp_norm" not in mitigations.summaries(runs)["trigger"].index


def test_the_command_prints_hypotheses_and_tables(runs, tmp_path, capsys):
    runs.to_parquet(tmp_path / "runs.parquet")
    assert hypotheses.main([str(tmp_path / "runs.parquet")]) == 0
    printed = capsys.readouterr().out
    assert "| hypothesis |" in printed
    assert "| trigger | solved |" in printed
    assert hypotheses.main([str(tmp_path / "none.parquet")]) == 2
    assert "error: there is no table" in capsys.readouterr().err


def test_a_table_without_runs_is_refused(runs):
    for table in (pd.DataFrame(), runs.drop(columns="attention_type")):
        with pytest.raises(LogError, match="train some|lacks attention_type"):
            hypotheses.hypotheses(table)


def test_the_results_say_what_the_committed_runs_say():
    page = (ROOT / "results" / "README.md").read_text()
    runs = load_runs(mitigations.RESULTS)
    assert f"{len(runs):,} runs, {(runs['state'] == 'diverged').sum()} of which diverged" in page
    assert hypotheses.hypotheses(load_runs(mitigations.SOURCES)) in page
