"""Lines: over training, over training steps, over sizes."""

import itertools
from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from src.analysis import scores
from src.analysis.figures.style import (
    COLUMN,
    PAGE,
    Look,
    add_legend,
    add_note,
    balanced,
    filling,
    looks,
    or_sentence,
    over_seeds,
    panel_title,
    title,
    types_of,
)
from src.analysis.selection import of_one_task, require_columns, require_runs, settled, task_of
from src.runs import HISTORY

LABELS = {"train/loss": "training loss", "eval/loss": "loss", "attn_entropy": "normalised entropy"}


@or_sentence
def flip_rate_by_size(runs: pd.DataFrame) -> Figure:
    """Flip rate against the number of heads, a panel for each number of layers, by attention type: means and
    intervals over seeds, those of one number of heads beside each other."""
    require_columns(runs, ["num_layers", "num_heads", "attention_type", "seed"])
    require_runs(runs, "of classification to measure flip rates by")
    runs = settled(runs)
    layers, sizes = (sorted(runs[name].unique()) for name in ("num_layers", "num_heads"))
    shown, rates = looks(types_of(runs)), scores.flip_rates(runs)
    figure, grid = plt.subplots(1, len(layers), figsize=(PAGE, 2.7), sharey=True, squeeze=False)
    for axes, num_layers in zip(grid[0], layers, strict=True):
        group = runs.loc[rates.index][lambda table, n=num_layers: table["num_layers"] == n]
        by_size = {n: scores.by_type(part, rates[part.index]) for n, part in group.groupby("num_heads")}
        for place, (name, look) in enumerate(shown.items()):
            points = pd.DataFrame({n: table.loc[name] for n, table in by_size.items() if name in table.index}).T
            if len(points):
                shift = 0.7 * ((place + 0.5) / len(shown) - 0.5)
                draw_points(axes, [sizes.index(n) + shift for n in points.index], points, look)
        axes.set(xlabel="heads", title=f"{num_layers:g} layer{'s' if num_layers > 1 else ''}", ylim=(0, 1.02))
        axes.set_xticks(range(len(sizes)), [f"{n:g}" for n in sizes])
    grid[0, 0].set_ylabel("flip rate, head that decides most")
    lines = {text: line for axes in grid[0] for line, text in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(lines.values(), lines.keys(), loc="outside right center")
    figure.suptitle(title(figure, runs, ["num_layers", "num_heads"]), fontsize=8)
    add_note(figure, over_seeds(runs, "Points: mean"), runs, ["num_layers", "num_heads"])
    return figure


def draw_points(axes: Axes, x: Sequence[float], points: pd.DataFrame, look: Look) -> None:
    """Means (columns mean, low, high) with their intervals as bars, joined by a thin line."""
    reach = [points["mean"] - points["low"], points["high"] - points["mean"]]
    face = look.colour if look.normalised else "white"
    style = {"marker": "o", "markersize": 3, "markerfacecolor": face, "linewidth": 0.4, "elinewidth": 0.8}
    axes.errorbar(x, points["mean"], reach, color=look.colour, label=look.title, **style)


def sample_tracking(rows: np.ndarray, tokens: np.ndarray, setting: str = "") -> Figure:
    """The CLS row of one sequence for each label after every training step.

    rows (steps, labels, T), tokens (labels, T), whose last is CLS; setting: what the title says of the run.
    """
    figure, grid = plt.subplots(1, rows.shape[1], figsize=(PAGE, 2.3), sharey=True)
    steps = np.arange(1, len(rows) + 1)
    for label, axes in enumerate(grid):
        for place, token in enumerate(tokens[label]):
            cls = place == tokens.shape[1] - 1
            colour = "black" if cls else plt.colormaps["tab10"](place % 10)
            axes.plot(steps, rows[:, label, place], color=colour, linewidth=1, label="CLS" if cls else str(token))
        axes.set(xscale="log", xlabel="training step", ylim=(-0.02, 1.02), title=f"a sequence of label {label}")
        axes.legend(title="token", fontsize=5, title_fontsize=5, loc="center right", ncols=2)
    grid[0].set_ylabel("attention of CLS")
    figure.suptitle(balanced(setting, 105), fontsize=8)
    return figure


def polarization_by_step(entropies: dict[str, np.ndarray], orders: dict[str, np.ndarray], setting: str = "") -> Figure:
    """Normalised entropy of CLS rows, and the share of pairs of keys that have the order of the end, after each
    step: means and intervals over the seeds of (seeds, steps), by attention type; setting: of what, for the title."""
    figure, grid = plt.subplots(1, 2, figsize=(PAGE, 2.3))
    shown = looks(entropies)
    for axes, lines in zip(grid, (entropies, orders), strict=True):
        for name, values in lines.items():
            line = dict(zip(("mean", "low", "high"), scores.mean_interval(values), strict=True))
            draw_line(axes, shown[name], pd.DataFrame(line, index=np.arange(1, values.shape[1] + 1)))
        axes.set(xscale="log", xlabel="training step", ylim=(0, 1.02))
    grid[0].set_ylabel("normalised entropy\nof CLS rows")
    grid[1].set_ylabel("pairs of tokens\nin the order of the end")
    grid[1].axhline(0.5, color="grey", linewidth=0.6, linestyle=":")
    grid[1].annotate("by chance", (1, 0.43), fontsize=6, color="dimgrey")
    grid[1].legend(loc="lower right")
    num_seeds = len(next(iter(entropies.values())))
    note = f"Mean, 95% t interval over {num_seeds} seeds" if num_seeds > 1 else "One seed"
    figure.supxlabel(note, fontsize=6, color="dimgrey")
    figure.suptitle(balanced(setting, 105), fontsize=8)
    return figure


# Over training


def draw_line(axes: Axes, look: Look, line: pd.DataFrame) -> None:
    """A line and its interval (columns mean, low, high) against the table's index, as the type looks."""
    markers = {"marker": "o", "markersize": 2.5} if len(line) < 5 else {}
    axes.plot(line.index, line["mean"], look.line, **markers, color=look.colour, label=look.title)
    axes.fill_between(line.index, line["low"], line["high"], color=look.colour, alpha=0.2, linewidth=0)


@or_sentence
def training_curves(runs: pd.DataFrame, metrics: Sequence[str] | None = None, by: Sequence[str] = ()) -> Figure:
    """Metrics (see `scores.curve`) over training, a row each, by attention type: means and intervals over seeds; a
    column of panels for each value of the fields `by`. By default loss, the task's accuracy and the entropy."""
    runs = of_one_task(scores.with_history(runs))
    task = task_of(runs)
    metrics = list(metrics or ("eval/loss", task.accuracy, "attn_entropy"))
    shown, groups = looks(types_of(runs)), list(runs.groupby(list(by))) if by else [((), runs)]
    wide = len(groups) > 1 or len(shown) > 12
    size = PAGE if wide else COLUMN, 0.9 + 1.3 * len(metrics) + (0.04 if wide else 0.08) * len(shown)
    figure, grid = plt.subplots(len(metrics), len(groups), figsize=size, sharex="col", sharey="row", squeeze=False)
    for (row, metric), (column, (values, group)) in itertools.product(enumerate(metrics), enumerate(groups)):
        axes, present = grid[row, column], set(group["attention_type"])
        lines = {
            name: scores.curve(group[group["attention_type"] == name], metric) for name in shown if name in present
        }
        for name, line in lines.items():
            draw_line(axes, shown[name], line)
        if metric.endswith("loss"):
            axes.set_yscale("log")
            means = pd.concat([line["mean"] for line in lines.values()])
            axes.set_ylim(0.8 * means[means > 0].min(), 1.2 * means.max())  # an interval that reaches 0 has no end
        if row == 0 and by:
            axes.set_title(balanced(panel_title(by, values, task), 100 // len(groups)), fontsize=7)
    for axes, metric in zip(grid[:, 0], metrics, strict=True):
        axes.set_ylabel(LABELS.get(metric, task.solved.words if metric == task.solved.metric else metric))
    for axes in grid[-1]:
        axes.set_xlabel("training step")
    add_note(figure, over_seeds(runs, "Lines: mean"), runs, by)
    keys = {text: line for axes in grid.flat for line, text in zip(*axes.get_legend_handles_labels(), strict=True)}
    add_legend(figure, title(figure, runs, by), list(keys.values()), list(keys), columns=4 if wide else 2)
    return figure


@or_sentence
def polarization(runs: pd.DataFrame, types: Sequence[str] | None = None) -> Figure:
    """Entropy of attention over training, as a fraction of the uniform row's: kernels side by side, a row of
    panels for each layer. Thin lines are heads of runs, thick ones their means with intervals over seeds.

    runs: of one task, with histories. types: as in `bar_figure`.
    """
    require_columns(runs, ["num_layers", "attention_type", "seed"])
    runs = scores.with_history(runs)
    shown = looks(types_of(runs) if types is None else types)
    kernels = list(dict.fromkeys(look.kernel for look in shown.values()))
    layers, columns = range(int(runs["num_layers"].max())), min(len(kernels), 7)
    num_rows = len(layers) * -(-len(kernels) // columns)
    size = (PAGE, 1 + 1.2 * num_rows)
    figure, grid = plt.subplots(num_rows, columns, figsize=size, sharex=True, sharey=True, squeeze=False)
    for axes in grid[-len(layers) :, (len(kernels) - 1) % columns + 1 :].flat:
        axes.set_visible(False)
    for place, kernel in enumerate(kernels):
        rows = grid[place // columns * len(layers) :, place % columns]
        for layer, axes in zip(layers, rows, strict=False):
            for name, group in runs.groupby("attention_type", sort=False):
                if name in shown and shown[name].kernel == kernel and layer < group["num_layers"].max():
                    draw_heads(axes, shown[name], group, layer)
                    draw_line(axes, shown[name], scores.curve(group, "attn_entropy", layer))
            axes.set(ylim=(0, 1.02), yticks=[0, 0.5, 1])
            if place % columns == 0:
                axes.set_ylabel(f"layer {layer}" if len(layers) > 1 else "normalised entropy")
        rows[0].set_title(balanced(kernel[1], 14), pad=3)
    for axes in grid[-1]:
        axes.set_xlabel("training step", fontsize=7)
    if len(layers) > 1:
        figure.supylabel("normalised entropy of attention", fontsize=8)
    add_note(figure, over_seeds(runs, "Thick lines: mean over heads and runs"), runs)
    styles = [{"linestyle": "-"}, {"linestyle": "--"}, {"linewidth": 0.3}]
    keys = [plt.Line2D([], [], color="grey", **style) for style in styles]
    names = [*filling(shown), "thin: one head of one run"]
    add_legend(figure, title(figure, runs), keys, names, columns=3)
    return figure


def draw_heads(axes: Axes, look: Look, runs: pd.DataFrame, layer: int) -> None:
    """The entropy of each head of each run as a thin line."""
    columns = scores.head_columns(runs, "attn_entropy", layer, HISTORY)
    for _, run in runs.iterrows():
        for name in columns:
            if np.ndim(run[name]):  # a run with fewer heads has no such column
                axes.plot(run[HISTORY + "step"], run[name], look.line, color=look.colour, linewidth=0.3, alpha=0.35)
