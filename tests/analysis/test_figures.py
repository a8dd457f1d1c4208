"""What the figures draw."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from of_trigger import trigger
from PIL import Image

from src.analysis import figures, report
from src.analysis.figures import animation
from src.config import RunConfig
from src.model.registry import ATTENTION
from src.runs import COMMITTED


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
    return [x for line in axes.lines if line.get_marker() == "x" for x in line.get_xdata()]


def intervals(axes) -> list[tuple[float, float]]:
    """From where to where each interval reaches that is drawn."""
    segments = [segment for lines in axes.collections for segment in lines.get_segments() if len(segment)]
    return [tuple(segment[:, 1]) for segment in segments]


def note(figure) -> str:
    return figure.get_supxlabel().replace("\n", " ").replace("\N{NO-BREAK SPACE}", " ")


def said(figure) -> str:
    """The sentence of a figure that has nothing else."""
    (text,) = figure.texts
    assert not figure.axes
    return text.get_text().replace("\n", " ")


def test_bars_show_the_mean_and_a_cross_where_no_run_qualifies(induction):
    figure = figures.sink_proportions(induction, types=["softmax", "sigmoid_norm", "sigmoid_unnorm"])
    axes = figure.axes[0]
    assert heights(axes)[0] == pytest.approx((1 + 0.5 + 1) / 3)
    assert crosses(axes) == pytest.approx([1.2])  # sigmoid, not normalised
    assert [label.get_text() for label in axes.get_xticklabels()] == ["softmax", "sigmoid"]
    assert [text.get_text() for text in axes.texts] == ["3", "1", "0/1"]  # of how many were trained
    assert len(heights(axes)) == 2
    ((below, above),) = intervals(axes)  # softmax alone has several seeds
    assert below < heights(axes)[0] < above


def test_types_that_were_never_trained_are_blank(induction):
    axes = figures.sink_proportions(induction, types=figures.PUBLISHED_TYPES).axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == [
        *("softmax", "sigmoid", "elu · elu", "elu", "linear", "mlp")
    ]
    assert len(heights(axes)) == 2
    assert len(crosses(axes)) == len(axes.texts) - 2 == 1


def test_counts_do_not_run_into_each_other(induction):
    """Twelve published types, of each 3 of 5 runs, or 35 of 60."""
    for solved, trained in ((3, 5), (35, 60)):
        rows = [
            {"attention_type": name, "seed": seed, "eval/acc_induction": float(seed < solved)}
            for name in figures.PUBLISHED_TYPES
            for seed in range(trained)
        ]
        figure = figures.sink_proportions(
            pd.concat([induction[:1]] * len(rows), ignore_index=True).assign(**pd.DataFrame(rows))
        )
        figure.canvas.draw()
        boxes = [text.get_window_extent() for text in figure.axes[0].texts]
        assert len(boxes) == len(figures.PUBLISHED_TYPES)
        assert min(right.x0 - left.x1 for left, right in zip(boxes, boxes[1:], strict=False)) > 0


def test_figures_draw_the_types_of_the_table_beside_each_other(induction):
    names = ["my.py:f", "softmax", "sigmoid_unnorm", "uniform", "other.py:f"]
    figure = figures.sink_proportions(induction.assign(attention_type=names, **{"eval/acc_induction": 1.0}))
    (axes,) = figure.axes
    labels = [label.get_text() for label in axes.get_xticklabels()]
    assert labels == ["softmax", "sigmoid", "my.py:f", "other.py:f"]  # two of one name by their files too
    bars = [bar for container in axes.containers for bar in container if hasattr(bar, "get_height")]
    middles = [bar.get_x() + bar.get_width() / 2 for bar in bars]
    assert middles == pytest.approx(list(axes.get_xticks()))  # each alone under its name, so in the middle
    assert {"the paper's", "own"} <= {text.get_text() for text in axes.texts}
    assert len({bar.get_edgecolor() for bar in bars}) == 4


def test_names_of_many_types_do_not_overlap():
    names = [f"my.py:function_{i}" for i in range(20)]
    runs = pd.DataFrame({"state": "finished", "attention_type": names, "seed": 0, "lr": 1.0, "eval/acc_induction": 0.5})
    figure = figures.induction_accuracies(runs)
    figure.canvas.draw()
    labels = figure.axes[0].get_xticklabels()
    spacing = np.diff([label.get_window_extent().x1 for label in labels]).min()
    assert labels[0].get_rotation() > 0
    assert spacing > labels[0].get_fontsize() * figure.dpi / 72
    assert len(set(figures.looks(names))) == 20


def test_the_rule_of_selection_is_an_argument_and_stands_below(induction):
    figure = figures.sink_proportions(induction, min_accuracy=0.9, lrs=[1e-3])
    assert heights(figure.axes[0])[2] == 1  # sigmoid, not normalised, now counts
    assert note(figure) == (
        "Mean, 95% t interval over seeds; number of runs (of those trained); runs with accuracy > 0.9. Pooled: seed 0/2"
    )
    assert "Pooled: seed 0–2, lr 0.001/0.01 (4/1 runs)" in note(figures.induction_accuracies(induction))
    one = note(figures.induction_accuracies(induction[2:4]))
    assert one == "Mean over runs of one seed; number of runs (of those trained)"


def test_the_title_says_what_the_runs_have_in_common(induction):
    title = figures.sink_proportions(induction.assign(lr=1e-3, num_layers=2, aux_loss_weight=0.0)).legends[0]
    words = title.get_title().get_text().replace("\N{NO-BREAK SPACE}", " ").replace("\n", " ")
    assert words == "Induction, 2 layers, aux 0, lr 0.001"


def test_rates_that_weigh_the_same(induction):
    figure = figures.sink_proportions(induction, equally=["lr"])
    assert heights(figure.axes[0])[0] == pytest.approx((1 + 0.5) / 2)
    assert "each lr weighs the same" in note(figure)


def test_a_panel_for_each_value(induction):
    figure = figures.sink_proportions(induction, by=["lr"])
    assert [axes.get_title() for axes in figure.axes] == ["lr\N{NO-BREAK SPACE}0.001", "lr\N{NO-BREAK SPACE}0.01"]
    assert heights(figure.axes[1]) == [0.5]
    assert "In all: seed 0–2" in note(figure)  # not in every panel


def test_a_figure_says_what_the_table_cannot_show(induction):
    nobody = induction[induction["seed"] > 5]
    assert said(figures.sink_proportions(nobody)) == (
        "Nothing to show: the table has no run to measure “share of heads with sink score > 0.9” by"
    )
    assert "no run to measure" in said(figures.sink_proportions(nobody, by=["lr"], columns=3))
    assert "lacks vocab_size" in said(figures.sink_proportions(induction, by=["vocab_size"]))
    assert "lacks 0_0_rel_attn_max" in said(figures.sparsity(induction))
    assert "lacks num_layers, num_heads" in said(figures.flip_rate_by_size(induction))
    assert "lacks mixing/0_0/avg" in said(figures.flip_rate_by_size(induction.assign(num_layers=1, num_heads=1)))
    assert "no finished run has a history" in said(figures.polarization(induction.assign(num_layers=2)))
    assert "no finished run has a history" in said(figures.training_curves(nobody))
    assert "is empty" in said(figures.induction_accuracies(pd.DataFrame()))


def test_a_diverged_run_was_trained_and_has_no_bar(induction):
    (axes,) = figures.induction_accuracies(
        induction.assign(state=["finished", "diverged", *["diverged"] * 2, "finished"])
    ).axes
    assert [text.get_text() for text in axes.texts] == ["2/3", "0/1", "0/1"]
    assert len(crosses(axes)) == 2


def test_the_note_is_of_the_runs_in_the_bars(induction):
    unsolved = induction.assign(**{"eval/acc_induction": np.where(induction["lr"] == 0.01, 0.2, 1.0)})
    assert note(figures.sink_proportions(unsolved)).endswith("Pooled: seed 0/2")


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
    assert one.lines[0].get_xydata().tolist() == [[0, 0.9], [1, 0.3]]  # places of 1 and 4 heads
    assert two.lines[0].get_xydata().tolist() == [[0, 0.5], [1, 0.2]]
    assert [label.get_text() for label in one.get_xticklabels()] == ["1", "4"]


def test_a_run_without_flip_rates_is_left_out_of_them():
    runs = pd.DataFrame({"num_layers": 1, "num_heads": [1, 1], "seed": [0, 1], "attention_type": "softmax"})
    runs["mixing/0_0/avg_top1_dominance_rate"] = [0.9, np.nan]
    assert figures.flip_rate_by_size(runs).axes[0].lines[0].get_xydata().tolist() == [[0, 0.9]]


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
    assert len(panels) == 2  # layers of one kernel
    softmax = panels[0].lines
    assert len(softmax) == 2 * 2 + 1
    assert softmax[-1].get_ydata().tolist() == pytest.approx([1, 0.3])


def test_a_type_with_fewer_layers_has_no_line_in_the_others():
    runs = pd.DataFrame({"num_layers": [2, 1], "attention_type": ["softmax", "sigmoid_norm"], "seed": 0})
    runs["history/step"] = [[0, 10]] * 2
    runs["history/0_0_attn_entropy"] = [[1.0, 0.5]] * 2
    runs["history/1_0_attn_entropy"] = [[1.0, 0.1], None]
    assert [len(axes.lines) for axes in figures.polarization(runs).axes] == [
        2,
        2,
        2,
        0,
    ]  # layers of kernels: a head, a mean


def test_lines_are_of_one_task():
    runs = pd.DataFrame({"task": ["induction", "classification"], "state": "finished", "seed": 0, "lr": 1e-3})
    runs = runs.assign(attention_type="softmax", **{"history/step": [[0]] * 2, "history/eval/loss": [[1.0]] * 2})
    assert "of 2 tasks, induction, classification; select" in said(figures.training_curves(runs, ["eval/loss"]))
    assert figures.style.setting_in_words(runs).startswith("Induction and classification, ")


def test_what_is_said_of_seeds_and_kernels_is_true_of_these(induction):
    one_seed = induction[induction["seed"] == 0]
    assert "Mean over runs of one seed" in note(figures.sink_proportions(one_seed))
    two_of_a_rate = figures.sink_proportions(induction, equally=["lr"])
    assert "Mean, no interval: a part has one seed" in note(two_of_a_rate)
    legend = [text.get_text() for text in figures.sink_proportions(one_seed).legends[0].get_texts()]
    assert legend == ["normalised", "not normalised", "no run qualifies"]
    own = one_seed.replace({"attention_type": {"sigmoid_norm": "my.py:f"}})
    legend = [text.get_text() for text in figures.sink_proportions(own).legends[0].get_texts()]
    assert legend[0] == "normalised, or not the paper's"
    softmax = induction[induction["attention_type"] == "softmax"]
    assert figures.sink_proportions(softmax).legends[0].get_texts() == []  # no cross, and no twins
    profiles = figures.sink_profiles(pd.DataFrame([trigger("softpick", 0, 0.1), trigger("relu_mean", 0, 0.2)]))
    assert note(profiles).startswith("Mean over runs of one seed. Grey: thresholds")


def test_an_attention_map_has_queries_down_from_the_top():
    weights = np.array([[1.0, 0.0], [-3.0, 0.2]])
    axes = figures.attention_map(weights, ["BOS", "7?"]).axes[0]
    (mesh,) = axes.collections
    assert mesh.get_array().reshape(2, 2).tolist() == weights.tolist()
    assert axes.yaxis_inverted()
    assert [label.get_text() for label in axes.get_yticklabels()] == ["BOS", "7?"]
    at_one, beyond = figures.maps.PUBLISHED(0.0), mesh.to_rgba(-3.0)
    assert at_one == beyond  # −1 and all below it are crimson


def test_attention_maps_say_how_large_the_weights_are():
    heads = np.array([[[1.0, 0.0], [-3.04, 0.2]]])
    models, positions = {"raw_dotproduct_unnorm": heads}, {"raw_dotproduct_unnorm": "add"}
    figure = figures.attention_maps(models, ["BOS", "7?"], positions, layer=1)
    assert figure.axes[0].get_title() == "layer 1, head 0\nweights −3.0 to 1.0"
    assert "positions: add" in figure.axes[0].get_ylabel()


def test_sample_tracking_draws_each_token():
    rows = np.random.default_rng(0).random((7, 2, 3))
    one, two = figures.sample_tracking(rows, np.array([[5, 6, 0], [15, 16, 0]])).axes
    assert [text.get_text() for text in two.get_legend().get_texts()] == ["15", "16", "CLS"]
    assert one.lines[2].get_ydata().tolist() == rows[:, 0, 2].tolist()
    assert one.lines[0].get_xdata().tolist() == [1, 2, 3, 4, 5, 6, 7]


def test_every_attention_type_can_be_told_from_the_others():
    assert len(set(figures.KERNEL_COLOURS.values())) == len(figures.KERNEL_COLOURS) == 7
    shown = figures.looks([*ATTENTION, "my.py:f", "my.py:g"])
    assert len({(look.label, look.normalised) for look in shown.values()}) == len(shown)
    assert len({(look.colour, look.normalised) for look in shown.values()}) > 0.8 * len(shown)


def test_a_movie_of_what_polarizes(tmp_path):
    steps, weights = np.array([1, 10, 100]), np.array([[0.5, 0.5], [0.8, 0.2], [1.0, 0.0]])
    maps = np.stack([np.array([[1.0, 0.0], [1 - half, half]]) for half in (0.5, 0.2, 0.0)])
    movie = animation.polarizing((steps, weights), (steps, maps), ["BOS", "7?"])
    movie.show(1)
    left, middle, right = movie.figure.axes
    assert heights(left) == [0.8, 0.2]
    assert middle.images[0].get_array().tolist() == maps[1].tolist()
    assert [line.get_ydata()[0] for line in right.lines[1::2]] == pytest.approx([0.7219, 0.7219], abs=1e-4)
    path = animation.save_gif(movie, "moving", tmp_path)
    with Image.open(path) as picture:
        assert (picture.format, picture.n_frames) == ("GIF", 3)
    assert [found.name for found in tmp_path.iterdir()] == ["moving.gif"]


def test_the_same_figure_is_the_same_file(induction, tmp_path):
    first = figures.save(figures.sink_proportions(induction), "a0.2", tmp_path / "one")
    second = figures.save(figures.sink_proportions(induction), "a0.2", tmp_path / "two")
    assert [path.name for path in first] == ["a0.2.pdf", "a0.2.png"]
    for a, b in zip(first, second, strict=True):
        assert a.read_bytes() == b.read_bytes()


def test_what_is_saved_has_room_for_legends_beside_axes(tmp_path):
    kinds = ["entmax15", "sparsemax", "softpick", "softmax_clipped", "relu_mean", "softmax"]
    figure = figures.sink_profiles(pd.DataFrame([trigger(kind, 0, 0.1) for kind in kinds]))
    figures.save(figure, "profiles", tmp_path)
    saved = figure.axes[0].get_position().y0
    figure.get_layout_engine().execute(figure)
    assert figure.axes[0].get_position().y0 == pytest.approx(saved, abs=0.01)


def test_where_pictures_go(tmp_path, monkeypatch):
    monkeypatch.chdir(COMMITTED.parent)
    for source in (COMMITTED, str(COMMITTED), COMMITTED.name):
        assert figures.folder_for(source) == figures.FOLDER
    for source in ("runs.db", tmp_path / COMMITTED.name, "entity/project/sweep", [COMMITTED, "runs.db"]):
        assert figures.folder_for(source) == figures.OWN_FOLDER


def test_what_makes_a_run_another():
    assert report.difference(RunConfig(seed=3, num_heads=2)) == "task=induction, seed=3, num_heads=2"
    assert report.difference(RunConfig(task="classification")) == "task=classification"


@pytest.mark.parametrize(
    ("seconds", "words"), [(40, "40 s"), (150, "2.5 min"), (1500, "25 min"), (9000, "2.5 h"), (864000, "10 days")]
)
def test_durations(seconds, words):
    assert report.duration(seconds) == words
