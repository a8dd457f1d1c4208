"""What the figures compute, on tables small enough to check by hand, and what they draw."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from src import figures, report
from src.config import RunConfig


@pytest.fixture(autouse=True)
def _close():
    yield
    plt.close("all")


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=20))
def test_an_interval_holds_its_mean_and_stays_within_what_was_seen(values):
    mean, low, high = figures.mean_interval(np.array(values))
    assert mean == pytest.approx(np.mean(values))
    near = 1e-9 * max(1, *map(abs, values))
    assert min(values) - near <= low <= mean + near
    assert mean - near <= high <= max(values) + near


def test_an_interval_is_that_of_the_normal_distribution_for_many_runs():
    values = np.random.default_rng(1).normal(size=400)
    mean, low, high = figures.mean_interval(values)
    assert (high - low) / 2 == pytest.approx(1.96 * values.std() / 20, rel=0.1)
    assert figures.mean_interval(np.array([3.0])) == (3, 3, 3)


@pytest.fixture
def induction():
    """Two heads in the second layer: 2 sinks; 1; none; not solved; one head only."""
    return pd.DataFrame(
        {
            "task": "induction",
            "attention_type": ["softmax", "softmax", "sigmoid_norm", "sigmoid_unnorm", "softmax"],
            "eval/acc_induction": [1.0, 0.96, 1.0, 0.95, 1.0],
            "0_0_rel_attn_bos_global": 0.99,  # the first layer does not count
            "1_0_rel_attn_bos_global": [0.95, 0.95, 0.9, 0.95, 0.91],
            "1_1_rel_attn_bos_global": [0.99, 0.2, 0.1, 0.95, np.nan],
        },
        index=[10, 11, 12, 13, 14],
    )


def test_sink_shares(induction):
    assert figures.sink_shares(induction).to_dict() == {10: 1, 11: 0.5, 12: 0, 14: 1}
    assert figures.sink_shares(induction, threshold=0.5, min_accuracy=0.9).to_dict()[13] == 1


def test_classification_scores():
    runs = pd.DataFrame(
        {
            "0_0_rel_attn_max": [0.5, 1.5, np.nan],  # a ratio of signed sums may exceed 1
            "0_1_rel_attn_max": [0.3, np.nan, np.nan],
            "mixing/0_0/avg_top1_dominance_rate": [0.2, 0.4, np.nan],
            "mixing/0_1/avg_top1_dominance_rate": [0.6, np.nan, np.nan],
        }
    )
    assert figures.sparsity_scores(runs).to_dict() == pytest.approx({0: 0.4, 1: 1.0})
    assert figures.flip_rates(runs).to_dict() == {0: 0.6, 1: 0.4}


def test_bars_show_the_mean_and_a_cross_where_no_run_qualifies(induction):
    axes = figures.sink_share_bars(induction).axes[0]
    heights = [bar.get_height() for bar in axes.patches if np.isfinite(bar.get_height()) and bar.get_width()]
    assert heights[0] == pytest.approx((1 + 0.5 + 1) / 3)
    (cross,) = [line for line in axes.lines if line.get_marker() == "x"]
    assert cross.get_color() == "red"
    assert cross.get_xdata()[0] == pytest.approx(1.2)  # sigmoid, not normalised
    assert [label.get_text() for label in axes.get_xticklabels()] == ["softmax", "sigmoid"]


def test_a_curve_is_the_mean_over_runs_and_heads_at_each_step():
    runs = pd.DataFrame(
        {
            "history/step": [[0, 10], [0, 10]],
            "history/eval/loss": [[3.0, 1.0], [5.0, 2.0]],
            "history/0_0_attn_entropy": [[1.0, 0.5], [1.0, 0.1]],
            "history/0_1_attn_entropy": [[1.0, 0.3], np.nan],  # a run with one head
        }
    )
    assert figures.curve(runs, "eval/loss")["mean"].to_dict() == {0: 4, 10: 1.5}
    assert figures.curve(runs, "attn_entropy")["mean"].to_dict() == pytest.approx({0: 1, 10: 0.25})


def test_every_attention_type_can_be_told_from_the_others():
    assert len(set(figures.KERNEL_COLOURS.values())) == len(figures.KERNEL_COLOURS) == 7


def test_the_same_figure_is_the_same_file(induction, tmp_path):
    first = figures.save(figures.sink_share_bars(induction), "a0.2", tmp_path / "one")
    second = figures.save(figures.sink_share_bars(induction), "a0.2", tmp_path / "two")
    assert [path.name for path in first] == ["a0.2.pdf", "a0.2.png"]
    for a, b in zip(first, second, strict=True):
        assert a.read_bytes() == b.read_bytes()


def test_what_makes_a_run_another():
    assert report.difference(RunConfig(seed=3, num_heads=2)) == "task=induction, seed=3, num_heads=2"
    assert report.difference(RunConfig(task="classification")) == "task=classification"


@pytest.mark.parametrize(
    ("seconds", "words"), [(40, "40 s"), (150, "2.5 min"), (1500, "25 min"), (9000, "2.5 h"), (864000, "10 days")]
)
def test_durations(seconds, words):
    assert report.duration(seconds) == words
