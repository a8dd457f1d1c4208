"""The figures beyond the paper: they draw, and say what the data say."""

import matplotlib.pyplot as plt
import numpy as np
import pytest

from src.analysis.figures import save
from src.value_softmax.beyond import adam, entmax, figures
from src.value_softmax.descent import descend
from src.value_softmax.flow import orbit
from src.value_softmax.model import value_softmax

U, TAU = np.array([0.1, 0.0, -0.1]), np.geomspace(0.3, 1e3, 200)


def descents():
    """Three runs from one start."""
    model, V = value_softmax("logistic", np.full(8, 8**-0.5)), adam.starts(8, 8, 0.1, 1)[0]
    settings = {"descent": ("sgd", 1.0), "sign": ("sign", 1e-3), "Adam": ("adam", 1e-3)}
    return {name: descend(model, V, np.zeros(8), steps=4000, lr=lr, optimizer=o) for name, (o, lr) in settings.items()}


def entmaxes():
    """Softmax's orbit, a power law and a finite end."""
    return {1.0: orbit(U, np.zeros(3), TAU)} | {alpha: entmax.losers(U, alpha, TAU) for alpha in (1.25, 1.5, 2.0)}


FIGURES = {
    "losers": lambda: figures.losers(entmaxes()),
    "winners": lambda: figures.winners(descents()),
    "winner_map": lambda: figures.winner_map(
        np.eye(2), [1e-3, 1e-2], [0.9, 0.99], {0.0: ([1e-3], [0.5]), 0.9: ([1e-3], [1.0])}
    ),
    "outlet_shares": lambda: figures.outlet_shares(
        {name: orbit(U, np.zeros(n), TAU, normalisation=name) for name, n in (("softmax1", 3), ("softmax_sink", 4))}
    ),
    "sparsemax": lambda: figures.sparsemax(
        entmax.losers(U, 2.0, TAU[:50]), entmax.sparsemax_flow(U, TAU[:50]), entmax.sparsemax_one_hot(U)
    ),
}


@pytest.fixture(autouse=True)
def _close():
    yield
    plt.close("all")


@pytest.mark.parametrize("name", FIGURES)
def test_nothing_is_beyond_the_canvas(name, tmp_path):
    figure = FIGURES[name]()
    for path in save(figure, name, tmp_path):
        assert 3000 < path.stat().st_size < 500_000
    figure.set_dpi(100)
    figure.canvas.draw()
    width, height = figure.canvas.get_width_height()
    for ax in figure.axes:
        for text in (ax.title, ax.xaxis.label, ax.yaxis.label):
            if text.get_text():
                box = text.get_window_extent()
                assert box.x0 > -1
                assert box.x1 < width + 1
                assert box.y0 > -1
                assert box.y1 < height + 1


def test_the_winners_are_named():
    titles = [ax.get_title() for ax in figures.winners(descents()).axes[:3]]
    assert [title.split("number ")[1].split(" ")[0] == "1" for title in titles] == [True, True, False]


def test_only_what_ends_is_marked_as_ending():
    lines = figures.losers(entmaxes()).axes[0].lines
    assert sum(line.get_marker() == "v" for line in lines) == 1  # α = 2, not the 1.5 that underflows
