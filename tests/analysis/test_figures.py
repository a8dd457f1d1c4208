"""What the figures draw."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from src.analysis import figures, report
from src.config import RunConfig
from src.runs import LogError


@pytest.fixture(autouse=True)
def _close():
    yield
    plt.close("all")


@pytest.fixture
def induction():
    """Two heads in the second layer: 2 sinks; 1; none; not solved; one head only."""
    return pd.DataFrame(
        {
            "task": "induction",
            "state": "finished",
            "seed": [0, 1, 0, 0, 2],
            "lr": [1e-3, 1e-2, 1e-3, 1e-3, 1e-3],
            "attention_type": ["softmax", "softmax", "sigmoid_norm", "sigmoid_unnorm", "softmax"],
            "eval/acc_induction": [1.0, 0.96, 1.0, 0.95, 1.0],
            "1_0_rel_attn_bos_global": [0.95, 0.95, 0.9, 0.95, 0.91],
            "1_1_rel_attn_bos_global": [0.99, 0.2, 0.1, 0.95, np.nan],
        }
    )


def heights(axes) -> list[float]:
    return [bar.get_height() for bar in axes.patches if np.isfinite(bar.get_height()) and bar.get_width()]


def crosses(axes) -> list[float]:
    return [line.get_xdata()[0] for line in axes.lines if line.get_marker() == "x"]


def note(figure) -> str:
    return figure.get_supxlabel().replace("\n", " ")


def test_bars_show_the_mean_and_a_cross_where_no_run_qualifies(induction):
    figure = figures.sink_proportions(induction, types=["softmax", "sigmoid_norm", "sigmoid_unnorm"])
    axes = figure.axes[0]
    assert heights(axes)[0] == pytest.approx((1 + 0.5 + 1) / 3)
    assert crosses(axes) == pytest.approx([1.2])  # sigmoid, not normalised
    assert [label.get_text() for label in axes.get_xticklabels()] == ["softmax", "sigmoid"]
    assert [text.get_text() for text in axes.texts] == ["3", "1", "0/1"]  # of how many were trained
    assert len(axes.containers) == 2 + 1  # bars, and one interval: softmax has several seeds


def test_the_published_figures_have_a_place_for_every_type(induction):
    axes = figures.sink_proportions(induction).axes[0]
    assert len(heights(axes)) == 2
    assert len(crosses(axes)) == len(figures.PUBLISHED_TYPES) - 2 == 9


def test_the_rule_of_selection_is_an_argument_and_stands_below(induction):
    figure = figures.sink_proportions(induction, min_accuracy=0.9, lrs=[1e-3])
    assert heights(figure.axes[0])[2] == 1  # sigmoid, not normalised, now counts
    assert note(figure) == (
        "Mean, 95% t interval over seeds, number of runs (of those trained); runs with accuracy > 0.9. "
        "Pooled: seed 0/2; lr 0.001"
    )
    assert "Pooled: seed 0–2, lr 0.001/0.01" in note(figures.induction_accuracies(induction))


def test_a_panel_for_each_value(induction):
    figure = figures.sink_proportions(induction, by=["lr"])
    assert [axes.get_title() for axes in figure.axes] == ["lr\N{NO-BREAK SPACE}0.001", "lr\N{NO-BREAK SPACE}0.01"]
    assert heights(figure.axes[1]) == [0.5]
    assert "In all: seed 0–2" in note(figure)  # not in every panel


def test_no_run_gives_crosses_and_a_warning(induction):
    nobody = induction[induction["seed"] > 5]
    with pytest.warns(UserWarning, match="no run for “share of heads with sink score > 0.9”"):
        figure = figures.sink_proportions(nobody)
    assert len(crosses(figure.axes[0])) == len(figures.PUBLISHED_TYPES)
    with pytest.warns(UserWarning, match="no run for"):
        figures.sink_proportions(nobody, by=["lr"], columns=3)


def test_lines_of_no_run_are_an_empty_figure_and_a_warning(induction):
    nobody = induction.assign(num_layers=2, num_heads=4, **{"mixing/0_0/avg_top1_dominance_rate": 0.5})[:0]
    with pytest.warns(UserWarning, match="no run for flip rates by size"):
        assert not figures.flip_rate_by_size(nobody).axes[0].lines
    without = induction.assign(num_layers=2, **{"history/step": None})
    with pytest.warns(UserWarning, match="no run for polarization over training"):
        assert not figures.polarization(without).axes[0].lines


def test_the_note_is_of_the_runs_in_the_bars(induction):
    unsolved = induction.assign(**{"eval/acc_induction": np.where(induction["lr"] == 0.01, 0.2, 1.0)})
    assert note(figures.sink_proportions(unsolved)).endswith("lr 0.001")


def test_a_missing_column_is_named(induction):
    with pytest.raises(LogError, match="lacks vocab_size"):
        figures.sink_proportions(induction, by=["vocab_size"])
    with pytest.raises(LogError, match="lacks 0_0_rel_attn_max"):
        figures.sparsity(induction)


def test_the_names_of_the_settings():
    names = [figures.induction_name(**setting) for setting in figures.INDUCTION_SETTINGS]
    assert len(set(names)) == 12
    assert {"aux0.2_shift_add", "aux0_noshift_no"} <= set(names)
    assert figures.fliprate_name(81, False, True) == "fliprate_vocab81_nomlp_ln"


def test_flip_rates_by_size():
    runs = pd.DataFrame(
        {
            "num_layers": [1, 1, 2, 2],
            "num_heads": [1, 4, 1, 4],
            "seed": 0,
            "attention_type": "softmax",
            "mixing/0_0/avg_top1_dominance_rate": [0.9, 0.1, 0.5, 0.2],
            "mixing/0_1/avg_top1_dominance_rate": [np.nan, 0.3, np.nan, 0.1],
        }
    )
    one, two = figures.flip_rate_by_size(runs).axes
    assert one.lines[0].get_xydata().tolist() == [[1, 0.9], [4, 0.3]]
    assert two.lines[0].get_xydata().tolist() == [[1, 0.5], [4, 0.2]]


def test_a_run_without_flip_rates_is_left_out_of_them():
    runs = pd.DataFrame({"num_layers": 1, "num_heads": [1, 1], "seed": [0, 1], "attention_type": "softmax"})
    runs["mixing/0_0/avg_top1_dominance_rate"] = [0.9, np.nan]
    assert figures.flip_rate_by_size(runs).axes[0].lines[0].get_xydata().tolist() == [[1, 0.9]]


def test_polarization_step_by_step():
    entropies = {"softmax": np.array([[1.0, 0.2, 0.0], [1.0, 0.4, 0.0]]), "sigmoid_unnorm": np.ones((2, 3))}
    orders = {name: np.array([[0.5, 0.9, 1.0], [0.7, 0.9, 1.0]]) for name in entropies}
    entropy, order = figures.polarization_by_step(entropies, orders).axes
    np.testing.assert_allclose(entropy.lines[0].get_xydata(), [[1, 1], [2, 0.3], [3, 0]])
    np.testing.assert_allclose(order.lines[0].get_ydata(), [0.6, 0.9, 1])
    labels = [text.get_text() for text in order.get_legend().get_texts()]
    assert labels == ["softmax", "sigmoid, not normalised"]


def test_polarization_has_a_panel_for_each_layer_and_kernel_and_a_line_for_each_head():
    runs = pd.DataFrame(
        {
            "num_layers": 2,
            "attention_type": ["softmax", "softmax"],
            "seed": [0, 1],
            "history/step": [[0, 10], [0, 10]],
            **{f"history/{layer}_{head}_attn_entropy": [[1.0, 0.5], [1.0, 0.1]] for layer in (0, 1) for head in (0, 1)},
        }
    )
    panels = figures.polarization(runs).axes
    assert len(panels) == 2 * 6
    softmax = panels[0].lines
    assert len(softmax) == 2 * 2 + 1
    assert softmax[-1].get_ydata().tolist() == pytest.approx([1, 0.3])


def test_an_attention_map_has_queries_down_from_the_top():
    weights = np.array([[1.0, 0.0], [-3.0, 0.2]])
    axes = figures.attention_map(weights, ["BOS", "7?"]).axes[0]
    (mesh,) = axes.collections
    assert mesh.get_array().reshape(2, 2).tolist() == weights.tolist()
    assert axes.yaxis_inverted()
    assert [label.get_text() for label in axes.get_yticklabels()] == ["BOS", "7?"]
    at_one, beyond = figures.maps.MAP_COLOURS(0.0), mesh.to_rgba(-3.0)
    assert at_one == beyond  # −1 and all below it are crimson


def test_attention_maps_say_how_large_the_weights_are():
    heads = np.array([[[1.0, 0.0], [-3.04, 0.2]]])
    figure = figures.attention_maps({"raw_dotproduct_unnorm": heads}, ["BOS", "7?"], {"raw_dotproduct_unnorm": "add"})
    assert figure.axes[0].get_title() == "head 0: −3.0 to 1.0"
    assert "positions: add" in figure.axes[0].get_ylabel()


def test_sample_tracking_draws_each_token():
    rows = np.random.default_rng(0).random((7, 2, 3))
    one, two = figures.sample_tracking(rows, np.array([[5, 6, 0], [15, 16, 0]])).axes
    assert [text.get_text() for text in two.get_legend().get_texts()] == ["15", "16", "CLS"]
    assert one.lines[2].get_ydata().tolist() == rows[:, 0, 2].tolist()
    assert one.lines[0].get_xdata().tolist() == [1, 2, 3, 4, 5, 6, 7]


def test_every_attention_type_can_be_told_from_the_others():
    assert len(set(figures.KERNEL_COLOURS.values())) == len(figures.KERNEL_COLOURS) == 7


def test_the_same_figure_is_the_same_file(induction, tmp_path):
    first = figures.save(figures.sink_proportions(induction), "a0.2", tmp_path / "one")
    second = figures.save(figures.sink_proportions(induction), "a0.2", tmp_path / "two")
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
