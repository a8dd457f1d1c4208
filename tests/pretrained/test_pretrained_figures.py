"""Figures from the analyses of the tiny models, as the notebook draws them from the large ones."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from src.pretrained import figures
from src.pretrained.analysis import analyse_gala
from src.pretrained.results import Analysis, Place, load_all, missing_commands
from src.pretrained.texts import Prompts


@pytest.fixture(scope="session")
def analysed(cache, model, reference, tmp_path_factory) -> Analysis:
    ids = torch.from_numpy(reference["input_ids"]).long()
    arrays = analyse_gala(cache, Prompts(ids, ids != 0), tmp_path_factory.mktemp("work"), 4, "float32", "cpu")
    return Analysis(arrays, {"title": model, "finished": "2026-01-01T00:00:00Z"})


@pytest.fixture(autouse=True)
def close():
    yield
    plt.close("all")


def test_sink_scores_are_shares_in_common_bins(analysed):
    """So that models of different sizes compare: each one's bars sum to 1, and lie at the same places."""
    figure = figures.sink_scores([analysed, analysed])
    for axes in figure.axes:
        heights = np.array([patch.get_height() for patch in axes.patches]).reshape(2, 20)
        np.testing.assert_allclose(heights.sum(1), 1)
        places = np.array([patch.get_x() for patch in axes.patches]).reshape(2, 20)
        np.testing.assert_allclose(places, [np.arange(20) / 20] * 2, atol=1e-9)


def test_first_token_map(analysed):
    (picture,) = figures.first_token_map(analysed).axes[0].images
    np.testing.assert_allclose(picture.get_array(), analysed.arrays["first_token_proportion"])


def test_lines_by_layer(analysed):
    line = figures.entropy_by_depth([analysed]).axes[0].lines[-1]
    np.testing.assert_allclose(line.get_ydata(), analysed.arrays["normalised_entropy"].mean(1))
    axes = figures.massive_activations([analysed, analysed]).axes
    assert len(axes) == 2
    np.testing.assert_allclose(axes[0].lines[0].get_ydata(), analysed.arrays["largest"][:, 0])


@pytest.fixture
def longer(analysed) -> Analysis:
    """With texts long enough for α₁, as the reference's are not, and an intervention."""
    generator = np.random.default_rng(0)
    alpha = generator.uniform(size=(3, 5, 4))
    arrays = analysed.arrays | {
        "alpha_1_texts": alpha,
        "alpha_1": alpha.mean(1),
        "alpha_1_queries": np.full((3, 5), 64.0),
    }
    for name, effect in (("mask_first", 0.5), ("mask_random", 0.01)):
        arrays |= {f"{name}/loss_effect": effect, f"{name}/first_share_effect": -effect}
        arrays |= {f"{name}/loss_effect_se": 0.02, f"{name}/first_share_effect_se": 0.02}
    about = {"n_samples": 5, "max_seq_len": 64, "weights": "w"}
    return Analysis(arrays, analysed.about | about)


def test_sinks_and_massive_activations_by_layer(longer):
    upper, lower = figures.sinks_and_massive(longer).axes
    assert lower.get_xlim() == upper.get_xlim()
    np.testing.assert_allclose(lower.lines[-2].get_ydata(), longer.arrays["alpha_1"].mean(1))
    limit = next(line for line in upper.lines if line.get_label() == "massive above").get_ydata()
    np.testing.assert_allclose(limit, np.maximum(100, 1000 * longer.arrays["median_magnitude"]))


def test_profile_of_thresholds_falls_from_one_to_none(longer):
    line = figures.sink_profile([longer]).axes[0].lines[0].get_ydata()
    assert (line[0], line[-1]) == (1, 0)
    assert (np.diff(line) <= 0).all()


def test_bars_of_interventions(longer):
    left, right = figures.interventions(longer).axes
    assert [bar.get_width() for bar in left.patches] == [0.5, 0.01]
    assert [bar.get_width() for bar in right.patches] == [-0.5, -0.01]
    assert [bar.get_facecolor() == (1, 1, 1, 1) for bar in left.patches] == [False, True]  # controls are hollow
    assert [text.get_text() for text in left.get_yticklabels()] == ["first key masked", "random key masked"]


@pytest.mark.parametrize("model", ["softmax"], scope="session")
def test_legends_of_three_models_stay_inside(longer):
    names = ["softmax", "SmolLM2-135M-Instruct after a token", "all-MiniLM-L6-v2 on random tokens"]
    three = [Analysis(longer.arrays, longer.about | {"title": name}) for name in names]
    for draw in figures.TOGETHER.values():
        figure = draw(three)
        figure.canvas.draw()
        (legend,), (width, height) = figure.legends, figure.canvas.get_width_height()
        box = legend.get_window_extent()
        assert box.x0 >= 0
        assert box.x1 <= width
        assert box.y1 <= height
    drawn = figures.figures_of(three[:1])
    assert {"pretrained_scores", "sink_scores", "pretrained_interventions_softmax"} <= drawn.keys()


def test_layers_without_attention_are_left_out(longer):
    arrays = {name: np.array(array) for name, array in longer.arrays.items()}
    arrays["row_sum"][1] = arrays["max_proportion"][1] = arrays["max_share"][1] = np.nan
    axes = figures.sink_scores([Analysis(arrays, longer.about)]).axes[0]
    np.testing.assert_allclose(sum(patch.get_height() for patch in axes.patches), 1)


def test_sink_maps(analysed):
    axes = figures.sink_head_maps(analysed, num=2).axes
    assert [a.images[0].get_array().shape for a in axes] == [(24, 24)] * 2


def test_newest_of_each_model(analysed, tmp_path):
    for seed, day in ((1, "02"), (2, "03"), (3, "01")):
        about = analysed.about | {"finished": f"2026-01-{day}T00:00:00Z", "seed": seed}
        Place.of(tmp_path, analysed.title, {"seed": seed}).save(analysed.arrays, about)
    (found,) = load_all(tmp_path)
    assert found.about["seed"] == 2
    (missing,) = missing_commands([found])
    assert f"--model {'sigmoid' if found.title == 'softmax' else 'softmax'}" in missing
