"""Moving pictures: attention that polarizes while it is trained."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from src import metrics
from src.analysis.figures import style
from src.analysis.figures.style import IN_STYLE, PAGE, written_whole

DOTS_PER_INCH = 140
SECONDS, LAST = 0.09, 2.5  # for which a frame is shown, and the last one
COLOURS = 128  # of a frame's palette


@dataclass(frozen=True)
class Movie:
    """A figure that `show` makes the picture of frame 0 … frames − 1."""

    figure: Figure
    show: Callable[[int], None]
    frames: int


def log_spaced(first: int, last: int, num: int) -> np.ndarray:
    """`num` of the steps first … last, spaced evenly in their logarithm, some repeated."""
    return np.geomspace(first, last, num).round().astype(int)


def polarizing(
    scores: tuple[np.ndarray, np.ndarray], head: tuple[np.ndarray, np.ndarray], names: Sequence[str], title: str = ""
) -> Movie:
    """The weights of the value-softmax model and the attention map of a head, and the entropy of both, in training.

    scores, head: The steps (frames,), and the weights after them: (frames, n), and (frames, T, T) of a causal head.
    names: Of the head's T tokens. title: What the head is of.
    """
    figure, (left, middle, right) = plt.subplots(
        1, 3, figsize=(PAGE, 2.45), gridspec_kw={"width_ratios": [1, 1.05, 1.05]}
    )
    (scores_at, weights), (head_at, maps) = scores, head
    n, frames = weights.shape[1], len(weights)
    bars = left.bar(range(n), weights[0], color=plt.colormaps["tab10"](range(n)))
    left.set(ylim=(0, 1), xlabel="score", ylabel="weight", xticks=range(n))
    picture = draw_weights(middle, maps[0], names)
    lines = {"value-softmax": entropy_of_rows(weights), "transformer head": entropy_of_head(maps)}
    dots = [draw_entropy(right, name, values) for name, values in lines.items()]
    right.set(xlim=(0, 1.03 * frames), ylim=(0, 1.04), xticks=[], xlabel="training, log scale")
    right.set_ylabel("normalised entropy")
    right.legend(loc="lower left")
    figure.suptitle(title, fontsize=8)

    def show(i: int) -> None:
        for bar, weight in zip(bars, weights[i], strict=True):
            bar.set_height(weight)
        picture.set_data(maps[i])
        left.set_title(f"value-softmax model\nstep {scores_at[i]:,}")
        middle.set_title(f"attention head\nstep {head_at[i]:,}")
        for dot, values in zip(dots, lines.values(), strict=True):
            dot.set_data([i], [values[i]])

    show(0)
    return Movie(figure, show, frames)


def draw_weights(axes: Axes, weights: np.ndarray, names: Sequence[str]):
    """The image of attention weights (T, T) from 0 to 1, queries down."""
    picture = axes.imshow(weights, vmin=0, vmax=1, cmap="Greens")
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=6)
    axes.set_yticks(range(len(names)), names, fontsize=6)
    axes.tick_params(length=0)
    axes.set(xlabel="key", ylabel="query")
    axes.spines[:].set_visible(True)
    return picture


def draw_entropy(axes: Axes, name: str, values: np.ndarray):
    """A line over the frames, and the dot that moves along it."""
    (line,) = axes.plot(values, linewidth=1, label=name)
    (dot,) = axes.plot([0], [values[0]], "o", color=line.get_color(), markersize=4)
    return dot


def entropy_of_rows(rows: np.ndarray) -> np.ndarray:
    """Of each row of weights (frames, n) the entropy over log n."""
    return metrics.entropy(torch.as_tensor(rows)).numpy() / np.log(rows.shape[1])


def entropy_of_head(maps: np.ndarray) -> np.ndarray:
    """Of each map (frames, T, T) the mean entropy of its rows (see `metrics.causal_entropy`)."""
    return metrics.causal_entropy(torch.as_tensor(maps)[:, None, None])[:, 0].numpy()


def save_gif(movie: Movie, name: str, folder: Path | str | None = None) -> Path:
    """Write a moving picture as `name`.gif into `folder` (made if missing; by default `style.FOLDER`); its path."""
    path = Path(folder or style.FOLDER) / f"{name}.gif"
    path.parent.mkdir(parents=True, exist_ok=True)
    with plt.style.context(IN_STYLE):
        first, *others = [frame(movie, i).quantize(COLOURS) for i in range(movie.frames)]
    durations = [1000 * SECONDS] * (movie.frames - 1) + [1000 * LAST]
    with written_whole(path) as unfinished:
        first.save(unfinished, "GIF", save_all=True, append_images=others, duration=durations, loop=0, optimize=True)
    return path


def frame(movie: Movie, i: int) -> Image.Image:
    """Frame i, without its alpha."""
    movie.figure.set_dpi(DOTS_PER_INCH)
    movie.show(i)
    movie.figure.canvas.draw()
    movie.figure.set_layout_engine("none")  # what the first frame's drawing laid out stays where it is
    return Image.fromarray(np.asarray(movie.figure.canvas.buffer_rgba())[..., :3].copy())
