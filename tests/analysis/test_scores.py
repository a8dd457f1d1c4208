"""What is computed from tables of runs, on tables small enough to check by hand."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from src.analysis import scores, selection
from src.config import RunConfig
from src.runs import LogError

ANY = (-np.inf, np.inf)


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=20))
def test_an_interval_is_students_where_each_run_has_its_own_seed(values):
    mean, low, high = scores.mean_interval(np.array(values), bounds=ANY)
    assert mean == pytest.approx(np.mean(values))
    assert mean - low == pytest.approx(high - mean, abs=1e-9)
    if len(values) > 1:
        reach = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
        assert high - mean == pytest.approx(reach, abs=1e-9)
    else:
        assert low == high == mean


@pytest.mark.parametrize("num_seeds", [2, 3, 5, 20])
def test_an_interval_covers_the_mean_as_often_as_it_says(num_seeds):
    """Of normal values, several runs of each seed, which share most of what is random."""
    rng = np.random.default_rng(0)
    seeds, covered = np.repeat(np.arange(num_seeds), 3), 0
    for _ in range(2000):
        values = rng.normal(size=num_seeds)[seeds] + 0.1 * rng.normal(size=len(seeds))
        _, low, high = scores.mean_interval(values, seeds, bounds=ANY)
        covered += low <= 0 <= high
    assert covered / 2000 == pytest.approx(0.95, abs=0.015)


@given(arrays(float, st.tuples(st.integers(1, 6), st.integers(1, 4)), elements=st.floats(-1, 1)))
def test_columns_have_an_interval_each(values):
    seeds = np.arange(len(values)) // 2
    together = scores.mean_interval(values, seeds, bounds=(-0.5, 0.5))
    apart = [scores.mean_interval(column, seeds, bounds=(-0.5, 0.5)) for column in values.T]
    np.testing.assert_allclose(np.array(together).T, apart, atol=1e-12)


def test_one_seed_in_a_part_of_what_is_pooled_leaves_no_interval():
    """However many seeds another part has: half of the mean is then of unknown spread."""
    runs = pd.DataFrame({"attention_type": "softmax", "seed": [0, 1, 2, 0], "lr": [1e-3, 1e-3, 1e-3, 1e-4]})
    values = pd.Series([0.9, 0.7, 0.8, 0.2])
    pooled = scores.by_type(runs, values, ["lr"]).loc["softmax"]
    assert pooled["mean"] == pooled["low"] == pooled["high"] == pytest.approx(0.5)
    assert (pooled["runs"], pooled["seeds"]) == (4, 1)
    apart = scores.by_type(runs[:3], values[:3], ["lr"]).loc["softmax"]
    assert apart["low"] < apart["mean"] < apart["high"]
    assert apart["seeds"] == 3


@given(st.lists(st.floats(-3, 3), min_size=2, max_size=6))
def test_a_band_has_its_line_inside(values):
    runs = pd.DataFrame({"state": "finished", "seed": range(len(values)), "history/step": [[0]] * len(values)})
    runs["history/eval/max_error"] = [[value] for value in values]
    line = scores.curve(runs, "eval/max_error").iloc[0]
    assert line["low"] - 1e-12 <= line["mean"] <= line["high"] + 1e-12
    assert line["low"] >= 0 or min(values) < 0


def test_of_an_edited_file_the_last_version_counts():
    runs = pd.DataFrame(
        {
            "task": "induction",
            "attention_type": ["my.py:f", "my.py:f", "softmax", "your.py:f"],
            "source": ["new", "old", None, "other"],
            "started": [2.0, 1.0, 0.5, 0.1],
            "state": "finished",
            "seed": 0,
        }
    )
    assert selection.select(runs).index.tolist() == [0, 2, 3]
    assert selection.select(runs, source="old").index.tolist() == [1]
    assert "source new/old" in selection.what_varies(runs).replace("\N{NO-BREAK SPACE}", " ")
    assert selection.what_varies(runs[runs["source"] != "old"]) == ""


def test_seeds_are_what_is_independent_not_runs():
    within = np.tile([0.0, 1.0], 500)  # what differs within seeds is no uncertainty
    assert scores.mean_interval(within, np.repeat([0, 1], 500)) == (0.5, 0.5, 0.5)
    once, often = (
        scores.mean_interval(np.array([0, 1])),
        scores.mean_interval(np.repeat([0, 1], 500), np.repeat([0, 1], 500)),
    )
    assert once == often == (0.5, 0, 1)  # two seeds: nothing is sure, but the bounds


def test_an_interval_ends_at_the_bounds():
    values = np.array([0.8, 1.0, 1.0])
    assert scores.mean_interval(values)[2] == 1
    assert scores.mean_interval(values, bounds=ANY)[2] > 1
    assert scores.mean_interval(-values, bounds=(-1, 1))[1] == -1


@pytest.fixture
def induction():
    """Two heads in the second layer: 2 sinks; 1; none; not solved; one head only; not finished."""
    return pd.DataFrame(
        {
            "task": "induction",
            "state": ["finished"] * 5 + ["diverged"],
            "seed": [0, 1, 0, 0, 2, 3],
            "lr": [1e-3, 1e-2, 1e-3, 1e-3, 1e-3, 1e-3],
            "attention_type": ["softmax", "softmax", "sigmoid_norm", "sigmoid_unnorm", "softmax", "softmax"],
            "eval/acc_induction": [1.0, 0.96, 1.0, 0.95, 1.0, 0.1],
            "0_0_rel_attn_bos_global": 0.99,  # the first layer does not count
            "1_0_rel_attn_bos_global": [0.95, 0.95, 0.9, 0.95, 0.91, np.nan],
            "1_1_rel_attn_bos_global": [0.99, 0.2, 0.1, 0.95, np.nan, np.nan],
            "1_0_mag_attn_bos_global": [0.5, 0.95, 0.9, 0.95, 0.91, np.nan],
        },
        index=[10, 11, 12, 13, 14, 15],
    )


def test_sink_shares(induction):
    assert scores.sink_shares(induction).to_dict() == {10: 1, 11: 0.5, 12: 0, 14: 1}
    assert scores.sink_shares(induction, threshold=0.5, min_accuracy=0.9).to_dict()[13] == 1
    assert scores.sink_shares(induction, score="mag_attn_bos_global").to_dict() == {10: 0, 11: 1, 12: 0, 14: 1}


def test_selecting_runs(induction):
    assert list(selection.select(induction).index) == [10, 11, 12, 13, 14, 15]
    assert list(selection.select(induction.assign(state="running")).index) == []
    assert list(selection.select(induction, lr=1e-2).index) == [11]
    assert list(selection.select(induction, seed=[1, 2], lr=None).index) == [11, 14]
    assert selection.select(induction, seed=7).empty


def test_the_runs_of_a_task(induction):
    whole = induction.assign(
        num_layers=2, num_heads=4, aux_loss_weight=0.2, shift_query_token=True, positional_type="no"
    )
    assert list(selection.of_task(whole, "induction").index) == [10, 11, 12, 13, 14, 15]
    with pytest.raises(LogError, match="lacks num_layers, num_heads, aux_loss_weight, shift_query_token, positional"):
        selection.of_task(induction, "induction")
    none = selection.of_task(whole, "classification")
    assert none.empty
    assert {"vocab_size", "use_mlp"} <= set(none)


def test_what_did_not_finish_has_no_results(induction):
    induction.loc[15, ["eval/acc_induction", "1_0_rel_attn_bos_global"]] = 1.0  # measured before it diverged
    assert 15 not in scores.accuracies(induction)
    assert 15 not in scores.sink_shares(induction)
    assert selection.settled(induction).loc[15, "lr"] == 1e-3
    assert scores.by_type(induction, scores.accuracies(induction))["runs"].to_dict()["softmax"] == 3


@pytest.mark.filterwarnings("error")
def test_a_wide_table_with_a_diverged_run_stays_in_one_piece():
    """Else pandas warns of each of hundreds of columns."""
    wide = pd.DataFrame({f"{i}_0_attn_entropy": [0.1, 0.2, 0.3] for i in range(150)})
    runs = selection.settled(
        wide.assign(state=["finished", "diverged", "finished"], seed=0, **{"eval/loss": 1.0}).copy()
    )
    assert runs["149_0_attn_entropy"].isna().tolist() == [False, True, False]
    runs["one more"] = 1.0


def test_each_combination_weighs_the_same_where_that_is_asked():
    runs = pd.DataFrame({"attention_type": "softmax", "seed": [0, 1, 2, 0], "lr": [1e-3, 1e-3, 1e-3, 1e-2]})
    values = pd.Series([1.0, 1.0, 1.0, 0.0])
    assert scores.by_type(runs, values).loc["softmax", "mean"] == 0.75
    assert scores.by_type(runs, values, ["lr"]).loc["softmax", "mean"] == pytest.approx(0.5)


@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=20), st.integers(1, 3))
def test_equal_weights_change_nothing(values, weight):
    plain, weighted = (
        scores.mean_interval(np.array(values), bounds=ANY, weights=weights)
        for weights in (None, np.full(len(values), 1 / weight))
    )
    np.testing.assert_allclose(weighted, plain, rtol=1e-9, atol=1e-9)


def test_values_beyond_one_keep_their_interval():
    runs = pd.DataFrame({"attention_type": "softmax", "seed": [0, 1]})
    assert scores.by_type(runs, pd.Series([3.0, 5.0])).loc["softmax", "high"] > 5


def test_the_commonest_value_is_the_default_where_others_are_as_common():
    runs = pd.DataFrame(
        {"lr": [1e-4, 1e-4, 1e-3, 1e-3, 1e-2], "num_heads": [8, 8, 8, 4, 1], "num_layers": [3, 1, 1, 3, 5]}
    )
    assert [selection.commonest(runs, name) for name in runs] == [1e-3, 8, 1]
    assert list(selection.usual(runs, "lr", "num_heads").index) == [3]  # of those, 4 heads are the default
    assert selection.usual(runs[:0], "lr").empty


def test_what_a_table_lacks_is_named(induction):
    with pytest.raises(LogError, match="lacks vocab_size, num_layers;"):
        selection.select(induction, vocab_size=41, num_layers=1)
    with pytest.raises(LogError, match="lacks 0_0_rel_attn_max"):
        scores.sparsity_scores(induction)
    with pytest.raises(LogError, match="lacks mixing/0_0/avg_top1_dominance_rate"):
        scores.flip_rates(induction)
    with pytest.raises(LogError, match="lacks eval/acc_induction"):
        scores.sink_shares(induction.drop(columns="eval/acc_induction"))
    with pytest.raises(LogError, match="is empty"):
        selection.select(pd.DataFrame())


def test_classification_scores():
    runs = pd.DataFrame(
        {
            "0_0_rel_attn_max": [0.5, 1.5, np.nan],  # a ratio of signed sums may exceed 1
            "0_1_rel_attn_max": [0.3, np.nan, np.nan],
            "mixing/0_0/avg_top1_dominance_rate": [0.2, 0.4, np.nan],
            "mixing/0_1/avg_top1_dominance_rate": [0.6, np.nan, np.nan],
        }
    )
    assert scores.sparsity_scores(runs).to_dict() == pytest.approx({0: 0.4, 1: 1.0})
    assert scores.flip_rates(runs).to_dict() == {0: 0.6, 1: 0.4}


def test_means_by_attention_type(induction):
    table = scores.by_type(induction, scores.sink_shares(induction))
    assert list(table.index) == ["softmax", "sigmoid_norm"]
    assert table.loc["softmax", ["mean", "runs", "seeds"]].tolist() == pytest.approx([2.5 / 3, 3, 3])


def test_a_curve_is_the_mean_over_runs_and_heads_at_each_step():
    runs = pd.DataFrame(
        {
            "seed": [0, 1],
            "history/step": [[0, 10], [0, 10]],
            "history/eval/loss": [[3.0, 1.0], [5.0, 2.0]],
            "history/0_0_attn_entropy": [[1.0, 0.5], [1.0, 0.1]],
            "history/0_1_attn_entropy": [[1.0, 0.3], np.nan],  # a run with one head
            "history/1_0_attn_entropy": [[0.0, 0.1], [0.0, 0.3]],
        }
    )
    assert scores.curve(runs, "eval/loss")["mean"].to_dict() == {0: 4, 10: 1.5}
    assert scores.curve(runs, "attn_entropy", layer=0)["mean"].to_dict() == pytest.approx({0: 1, 10: 0.25})
    assert scores.curve(runs, "attn_entropy")["mean"].to_dict() == pytest.approx({0: 7 / 12, 10: 0.25})


def test_in_what_runs_differ(induction):
    runs = pd.DataFrame({"seed": [0, 1, 2], "lr": [1e-3, 1e-2, 1e-3], "use_mlp": True, "attention_type": list("abc")})
    words = selection.what_varies(runs.assign(use_mlp=[True, False, True])).replace("\N{NO-BREAK SPACE}", " ")
    assert words == "seed 0–2, lr 0.001/0.01 (2/1 runs), no MLP/MLP (1/2 runs)"
    assert selection.what_varies(runs.iloc[[0, 2]]) == "seed\N{NO-BREAK SPACE}0/2"
    assert selection.what_varies(runs.iloc[:1]) == ""
    many = pd.DataFrame({"lr": [10.0**-i for i in range(9)]})
    assert selection.what_varies(many).replace("\N{NO-BREAK SPACE}", " ") == "lr 1e-08/1e-07/…/1"


def test_what_runs_have_in_common_in_words():
    runs = pd.DataFrame([RunConfig(seed=seed, embed_dim=64).to_dict() for seed in range(2)])
    assert selection.setting_in_words(runs, besides=["lr"]).replace("\N{NO-BREAK SPACE}", " ") == (
        "Induction, embed_dim 64, 2 layers, 4 heads, MLP, LayerNorm, positions concat, vocabulary 50, aux 0.2, shift"
    )
