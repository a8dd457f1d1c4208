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


def test_sink_scores_counts_every_head(analysed):
    figure = figures.sink_scores([analysed, analysed])
    for axes in figure.axes:
        assert sum(patch.get_height() for patch in axes.patches) == 2 * 12
        assert len(axes.patches) == 2 * 20


def test_first_token_map(analysed):
    (picture,) = figures.first_token_map(analysed).axes[0].images
    np.testing.assert_allclose(picture.get_array(), analysed.arrays["first_token_proportion"])


def test_lines_by_layer(analysed):
    line = figures.entropy_by_depth([analysed]).axes[0].lines[-1]
    np.testing.assert_allclose(line.get_ydata(), analysed.arrays["normalised_entropy"].mean(1))
    axes = figures.massive_activations([analysed, analysed]).axes
    assert len(axes) == 2
    np.testing.assert_allclose(axes[0].lines[0].get_ydata(), analysed.arrays["largest"][:, 0])


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
