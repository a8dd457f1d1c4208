"""Lines: over training, over training steps, over sizes."""

import itertools
from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from src.analysis import scores
from src.analysis.figures.style import COLUMN, KERNEL_COLOURS, PAGE, PUBLISHED_TYPES, add_note, warn_if_empty
from src.model.registry import ATTENTION
from src.runs import HISTORY

LABELS = {
    "train/loss": "training loss",
    "eval/loss": "loss",
    "eval/acc": "accuracy",
    "eval/acc_induction": "accuracy",
    "attn_entropy": "normalised entropy",
}


def flip_rate_by_size(runs: pd.DataFrame) -> Figure:
    """Flip rate against the number of heads, a panel for each number of layers, by attention type: mean and
    interval over seeds."""
    scores.require_columns(runs, ["num_layers", "num_heads", "attention_type", "seed"])
    warn_if_empty(len(runs) > 0, "flip rates by size")
    layers = sorted(runs["num_layers"].unique()) or [1]
    figure, grid = plt.subplots(1, len(layers), figsize=(PAGE, 2.5), sharey=True, squeeze=False)
    for axes, num_layers in zip(grid[0], layers, strict=True):
        group = runs[(runs["num_layers"] == num_layers) & runs["attention_type"].isin(PUBLISHED_TYPES)]
        rates = scores.flip_rates(group)
        group = group.loc[rates.index]
        sizes = {n: scores.by_type(part, rates[part.index]) for n, part in group.groupby("num_heads")}
        for name in group["attention_type"].unique():
            line = pd.DataFrame({n: table.loc[name] for n, table in sizes.items() if name in table.index}).T
            draw_line(axes, name, line)
        axes.set(xlabel="heads", title=f"{num_layers} layer{'s' if num_layers > 1 else ''}", ylim=(0, 1))
        axes.set_xscale("log", base=2)
        axes.set_xticks(list(sizes), list(sizes))
    grid[0, 0].set_ylabel("flip rate, head that decides most")
    figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside right center")
    add_note(figure, "all runs", runs.drop(columns=["num_layers", "num_heads"]))
    return figure


def sample_tracking(rows: np.ndarray, tokens: np.ndarray) -> Figure:
    """The CLS row of one sequence for each label after every training step.

    rows (steps, labels, T), tokens (labels, T), whose last is CLS.
    """
    figure, grid = plt.subplots(1, rows.shape[1], figsize=(PAGE, 2.1), sharey=True)
    steps = np.arange(1, len(rows) + 1)
    for label, axes in enumerate(grid):
        for place, token in enumerate(tokens[label]):
            cls = place == tokens.shape[1] - 1
            colour = "black" if cls else plt.colormaps["tab10"](place % 10)
            axes.plot(steps, rows[:, label, place], color=colour, linewidth=1, label="CLS" if cls else str(token))
        axes.set(xscale="log", xlabel="training step", ylim=(-0.02, 1.02), title=f"label {label}")
        axes.legend(title="token", fontsize=5, title_fontsize=5, loc="center right", ncols=2)
    grid[0].set_ylabel("attention of CLS")
    return figure


def polarization_by_step(entropies: dict[str, np.ndarray], orders: dict[str, np.ndarray]) -> Figure:
    """Normalised entropy of CLS rows, and the share of pairs of keys that have the order of the end, after each
    step: means and intervals over the seeds of (seeds, steps), by attention type."""
    figure, panels = plt.subplots(1, 2, figsize=(PAGE, 2.1))
    for axes, lines in zip(panels, (entropies, orders), strict=True):
        for name, values in lines.items():
            line = {step: scores.mean_interval(at_step) for step, at_step in enumerate(values.T, start=1)}
            draw_line(axes, name, pd.DataFrame.from_dict(line, orient="index", columns=["mean", "low", "high"]))
        axes.set(xscale="log", xlabel="training step", ylim=(0, 1.02))
    panels[0].set_ylabel("normalised entropy")
    panels[1].set_ylabel("pairs of tokens\nin the order of the end")
    panels[1].axhline(0.5, color="grey", linewidth=0.6, linestyle=":")
    panels[1].annotate("by chance", (1, 0.43), fontsize=6, color="dimgrey")
    panels[1].legend(loc="lower right")
    num_seeds = len(next(iter(entropies.values())))
    figure.supxlabel(f"Mean, 95% t interval over {num_seeds} seeds", fontsize=6, color="dimgrey")
    return figure


# Over training


def draw_line(axes: Axes, attention_type: str, line: pd.DataFrame) -> None:
    """A line and its interval (columns mean, low, high) against the table's index, in the type's style."""
    kind = ATTENTION[attention_type]
    style = "-" if kind.normalised else "--"
    label = kind.label + ("" if kind.normalised or kind.label == "softmax" else ", not normalised")
    markers = {"marker": "o", "markersize": 2.5} if len(line) < 5 else {}
    axes.plot(line.index, line["mean"], style, **markers, color=KERNEL_COLOURS[kind.label], label=label)
    axes.fill_between(line.index, line["low"], line["high"], color=KERNEL_COLOURS[kind.label], alpha=0.2, linewidth=0)


def training_curves(runs: pd.DataFrame, metrics: Sequence[str] = ("eval/loss", "eval/acc", "attn_entropy")) -> Figure:
    """Metrics (see `scores.curve`) over training, a row each, by attention type: mean and interval over seeds."""
    figure, grid = plt.subplots(len(metrics), 1, figsize=(COLUMN, 0.4 + 1.3 * len(metrics)), sharex=True)
    for axes, metric in zip(np.atleast_1d(grid), metrics, strict=True):
        for name, group in runs.groupby("attention_type", sort=False):
            draw_line(axes, name, scores.curve(group, metric))
        axes.set_ylabel(LABELS.get(metric, metric))
        if metric.endswith("loss"):
            axes.set_yscale("log")
    axes.set_xlabel("training step")
    add_note(figure, "all runs", runs)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=2)
    return figure


def polarization(runs: pd.DataFrame) -> Figure:
    """Entropy of attention over training, as a fraction of the uniform row's: kernels side by side, a row of
    panels for each layer. Thin lines are heads of runs, thick ones their means with intervals over seeds.

    runs: of one task, with histories.
    """
    scores.require_columns(runs, [HISTORY + "step", "num_layers", "attention_type", "seed"])
    runs = runs[runs[HISTORY + "step"].map(np.ndim) == 1]
    warn_if_empty(len(runs) > 0, "polarization over training")
    kernels = [k for k in KERNEL_COLOURS if k != "uniform"]
    layers = range(int(runs["num_layers"].max())) if len(runs) else [0]
    size = (PAGE, 0.7 + 1.2 * len(layers))
    figure, grid = plt.subplots(len(layers), len(kernels), figsize=size, sharex=True, sharey=True, squeeze=False)
    for layer, kernel in itertools.product(layers, kernels):
        axes = grid[layer, kernels.index(kernel)]
        for name, group in runs.groupby("attention_type", sort=False):
            if ATTENTION[name].label == kernel:
                draw_heads(axes, name, group, layer)
                draw_line(axes, name, scores.curve(group, "attn_entropy", layer))
        axes.set(ylim=(0, 1.02), yticks=[0, 0.5, 1])
        if layer == 0:
            axes.set_title(kernel, pad=3)
        if kernel == kernels[0]:
            axes.set_ylabel(f"layer {layer}" if len(layers) > 1 else "normalised entropy")
        if layer == layers[-1]:
            axes.set_xlabel("training step", fontsize=7)
    add_note(figure, "all runs", runs)
    if len(layers) > 1:
        figure.supylabel("normalised entropy of attention", fontsize=8)
    lines = [plt.Line2D([], [], color="grey", linestyle=style) for style in ("-", "--")]
    figure.legend(lines, ["normalised", "not normalised"], loc="outside upper center", ncols=2)
    return figure


def draw_heads(axes: Axes, attention_type: str, runs: pd.DataFrame, layer: int) -> None:
    """The entropy of each head of each run as a thin line."""
    kind = ATTENTION[attention_type]
    for _, run in runs.iterrows():
        for name in scores.head_columns(runs, "attn_entropy", layer, HISTORY):
            if np.ndim(run[name]):  # a run with fewer heads has no such column
                style = "-" if kind.normalised else "--"
                axes.plot(run[HISTORY + "step"], run[name], style, color=KERNEL_COLOURS[kind.label], lw=0.3, alpha=0.35)
