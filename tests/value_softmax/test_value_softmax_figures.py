"""The figures: nothing beyond the canvas, one colour for each coordinate, lines light enough for a PDF."""

import matplotlib.pyplot as plt
import numpy as np
import pytest

from src.analysis.figures import COLUMN, PAGE, save
from src.value_softmax import figures
from src.value_softmax.descent import descend
from src.value_softmax.flow import flow, reduced_flow
from src.value_softmax.kernels import PAPERS_NORMALISATIONS
from src.value_softmax.model import value_softmax

RNG = np.random.default_rng(0)
V, BETA = 0.1 * RNG.normal(size=(4, 5)), np.full(4, 0.5)


def short(loss="logistic", normalisation="Softmax", steps=3000, **options):
    """A short run of five scores (four if tied)."""
    target = np.full(4, 0.25) if loss == "cross-entropy" else BETA
    model = value_softmax(loss, target, normalisation, **options)
    values, n = (np.eye(4), 4) if model.tied else (V, 5)
    return descend(model, values, np.ones(n), steps=steps, lr=0.1, record=range(steps + 1))


def attention(t):
    """A flow of three rows of scores."""
    return flow(value_softmax("logistic", BETA), V, RNG.normal(size=(3, 5)), t)


def regression():
    """A short run of the regression."""
    return short("regression", X=np.eye(4))


FIGURES = {
    "evolution": lambda: figures.evolution(short()),
    "comparison": lambda: figures.comparison({name: short(normalisation=name) for name in PAPERS_NORMALISATIONS}),
    "massive": lambda: figures.massive_activations({D: short(tied=True) for D in (4, 5, 6, 7)}),
    "condition_numbers": lambda: figures.condition_numbers({kappa: regression() for kappa in range(1, 6)}),
    "condition_numbers_small": lambda: figures.condition_numbers_small({k: regression() for k in range(1, 6)}),
    "kl": lambda: figures.kl(short("cross-entropy")),
    "descent_and_flow": lambda: figures.descent_and_flow(
        run := short(), flow(run.model, run.V[0], run.a[0], run.t[1:])
    ),
    "entropies": lambda: figures.entropies({"logistic": short(), "square": short("square")}),
    "ratio_bound": lambda: figures.ratio_bound(
        reduced_flow("logistic", V.T @ BETA, np.zeros(5), np.linspace(-2, 230, 50)), np.linspace(-2, 230, 50)
    ),
    "attention_sink": lambda: figures.attention_sink({"one": attention([0, 1, 10]), "two": attention([0, 1, 10])}),
}


@pytest.fixture(autouse=True)
def _close():
    yield
    plt.close("all")


@pytest.mark.parametrize("name", FIGURES)
def test_nothing_is_drawn_beyond_the_canvas(name, tmp_path):
    figure = FIGURES[name]()
    assert figure.get_figwidth() in (COLUMN, PAGE)
    paths = save(figure, name, tmp_path)
    assert all(path.stat().st_size < 500_000 for path in paths)
    drawn, (width, height) = figure.get_tightbbox(), figure.get_size_inches()  # of everything as saved, in inches
    assert min(drawn.x0, drawn.y0) > -0.01
    assert drawn.x1 < width + 0.01
    assert drawn.y1 < height + 0.01


def test_a_coordinate_has_one_colour_across_panels():
    figure = FIGURES["evolution"]()
    left, right = ([line.get_color() for line in ax.lines] for ax in figure.axes)
    np.testing.assert_array_equal(left, right)
    assert len(np.unique(left, axis=0)) == 5


@pytest.mark.parametrize("n", [3, 10, 17, 20, 100])
def test_colours_differ(n):
    assert len(np.unique(figures.colours(n), axis=0)) == n


def test_lines_are_thinned_and_keep_their_ends():
    line = FIGURES["evolution"]().axes[0].lines[0]
    x = line.get_xdata()
    assert len(x) <= figures.POINTS + 1
    assert (x[0], x[-1]) == (1, 3000)
