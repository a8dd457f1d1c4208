"""The figures of trained transformers: one style, and one function for each figure.

Every function takes a table of runs (see `src.scores.select`) or arrays and returns a matplotlib Figure; `save`
writes it as PDF and PNG.
"""

import itertools
import textwrap
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from src import scores
from src.attention import ATTENTION
from src.runs import HISTORY

COLUMN, PAGE = 3.25, 6.75  # widths in inches: one column of the paper, and both
FOLDER = Path(__file__).parents[1] / "visualizations" / "fig"

STYLE = {
    "font.family": "serif",
    "font.size": 8,
    "mathtext.fontset": "cm",  # the look of LaTeX without needing it
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "lines.linewidth": 1.2,
    "figure.constrained_layout.use": True,
    "figure.dpi": 150,
    "savefig.dpi": 300,
    "pdf.fonttype": 42,  # text stays text
}
plt.rcParams.update(STYLE)


def save(figure: Figure, name: str, folder: Path | str = FOLDER) -> list[Path]:
    """Write `figure` as `name`.pdf and `name`.png into `folder` (made if missing); the two paths."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.{kind}" for kind in ("pdf", "png")]  # a name may hold dots: aux0.2
    for path in paths:
        # no date in the PDF: the same figure is the same file
        figure.savefig(path, metadata={"CreationDate": None} if path.suffix == ".pdf" else None)
    return paths


# Colours of the kernels, by the label that figures give them (Okabe-Ito, safe for colour blindness).
KERNEL_COLOURS = dict(
    zip(
        dict.fromkeys(kind.label for kind in ATTENTION.values()),
        ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#666666"],
        strict=True,
    )
)


LABELS = {
    "train/loss": "training loss",
    "eval/loss": "loss",
    "eval/acc": "accuracy",
    "eval/acc_induction": "accuracy",
    "attn_entropy": "normalised entropy",
}
PUBLISHED_TYPES = [name for name in ATTENTION if name != "uniform"]


# Bars


CROSS = {"marker": "x", "color": "red", "markersize": 5, "linestyle": "none"}


def draw_bars(axes: Axes, runs: pd.DataFrame, values: pd.Series, types: Sequence[str], size: float = 6) -> None:
    """Mean of `values` (indexed as `runs`) by attention type: kernels side by side, with and without
    normalisation, with intervals over seeds; a red cross where no run has a value. Above, in `size` points: how
    many have, of how many were trained if not all have."""
    kernels = list(dict.fromkeys(ATTENTION[name].label for name in types))
    summary, trained = scores.by_type(runs, values), runs["attention_type"].value_counts()
    for name in types:
        kind = ATTENTION[name]
        alone = kind.label == "softmax"  # which has no twin without normalisation
        x = kernels.index(kind.label) + (0 if alone else -0.2 if kind.normalised else 0.2)
        count = 0
        if name in summary.index:
            count = int(summary.loc[name, "runs"])
            draw_bar(axes, x, summary.loc[name], KERNEL_COLOURS[kind.label], kind.normalised)
        else:
            axes.plot(x, 0.03, **CROSS, clip_on=False)
        if name in trained.index:
            text = f"{count}" if count == trained[name] else f"{count}/{trained[name]}"
            axes.annotate(text, (x, 1.08), ha="center", fontsize=size, color="dimgrey")
    axes.set_xticks(range(len(kernels)), kernels)
    axes.set(xlim=(-0.6, len(kernels) - 0.4), ylim=(0, 1.2))
    axes.set_yticks([0, 0.5, 1])


def draw_bar(axes: Axes, x: float, bar: pd.Series, colour: str, normalised: bool) -> None:
    """One bar, a row of `scores.by_type`, with its interval."""
    axes.bar(x, bar["mean"], 0.36, color=colour if normalised else "white", edgecolor=colour, linewidth=1)
    if bar["seeds"] > 1:
        below, above = bar["mean"] - bar["low"], bar["high"] - bar["mean"]
        axes.errorbar(x, bar["mean"], [[below], [above]], color="black", linewidth=0.8, capsize=1.5)


def bar_figure(
    runs: pd.DataFrame,
    score: Callable[[pd.DataFrame], pd.Series],
    label: str,
    *,
    rule: str = "all runs",
    by: Sequence[str] = (),
    columns: int = 1,
    types: Sequence[str] = PUBLISHED_TYPES,
) -> Figure:
    """`draw_bars` of a score of each run, a panel for each value of the fields `by` (one for no field).

    Under it stands what the bars are means of: the `rule` by which runs are chosen, and in what they differ.
    """
    scores.require_columns(runs, ["seed", "attention_type", *by])
    groups = list(runs.groupby(list(by))) if by and len(runs) else [((), runs)]
    measured = [score(group) for _, group in groups]
    if all(values.empty for values in measured):
        warnings.warn(f"no run for “{label}” ({rule}): crosses instead of bars".replace("\n", " "), stacklevel=3)
    num_rows = -(-len(groups) // columns)
    width = COLUMN if columns == 1 else PAGE
    height = 0.75 + num_rows * (1.55 if columns < 3 else 1.15)
    figure, grid = plt.subplots(num_rows, columns, figsize=(width, height), sharex=True, sharey=True, squeeze=False)
    for axes in grid.flat[len(groups) :]:
        axes.set_visible(False)
    for axes, (values, group), of_runs in zip(grid.flat, groups, measured, strict=False):
        draw_bars(axes, group, of_runs, types, size=6 if columns < 3 else 4.5)
        if by and len(values):
            title = textwrap.fill(panel_title(by, values), 120 // columns - 4)
            axes.set_title(title, fontsize=7 if columns < 4 else 6, pad=3)
    for axes in grid.flat[max(0, len(groups) - columns) : len(groups)]:  # the lowest of each column
        axes.tick_params(axis="x", labelbottom=True)
        if columns == 1:
            axes.tick_params(axis="x", labelsize=6.5)
        if columns > 2:
            plt.setp(axes.get_xticklabels(), rotation=50, ha="right", rotation_mode="anchor")
    if num_rows == 1:
        grid[0, 0].set_ylabel(label)
    else:
        figure.supylabel(label, fontsize=8)
    keys = [plt.Rectangle((0, 0), 1, 1, facecolor=colour, edgecolor="grey") for colour in ("grey", "white")]
    names = ["normalised", "not normalised", "no run qualifies"]
    figure.legend([*keys, plt.Line2D([], [], **CROSS)], names, loc="outside upper center", ncols=3, columnspacing=1.2)
    pooled = runs.loc[[place for values in measured for place in values.index]]
    how = "Pooled" if len(groups) == 1 else "In all"
    add_note(figure, f"number of runs (of those trained); {rule}", pooled.drop(columns=list(by)), how)
    return figure


def add_note(figure: Figure, rest: str, runs: pd.DataFrame, pooled: str = "Pooled") -> None:
    """A line below the figure: what its means and intervals are over."""
    note = f"Mean, 95% t interval over seeds, {rest}. {pooled}: {scores.what_varies(runs)}"
    fixed = {name: set(runs[name]) for name in ("lr", "num_layers", "num_heads") if name in runs}
    note += "".join(f"; {name} {values.pop():g}" for name, values in fixed.items() if len(values) == 1)
    figure.supxlabel(textwrap.fill(note, int(21 * figure.get_figwidth())), fontsize=6, color="dimgrey")


def warn_if_empty(some: bool, what: str) -> None:
    """Warn of a figure that has nothing to show."""
    if not some:
        warnings.warn(f"no run for {what}: an empty figure", stacklevel=3)


def panel_title(fields: Sequence[str], values: Sequence[Any]) -> str:
    """Fields and their values in words."""
    words = {("use_mlp", True): "MLP", ("use_mlp", False): "no MLP"}
    words |= {("use_layernorm", True): "LayerNorm", ("use_layernorm", False): "no LayerNorm"}
    words |= {("shift_query_token", True): "shift", ("shift_query_token", False): "no shift"}
    words |= {("positional_type", "no"): "no positions"}
    names = {"aux_loss_weight": "aux", "positional_type": "positions"}
    parts = []
    for field, value in zip(fields, values, strict=True):
        shown = f"{value:g}" if isinstance(value, float) else value
        part = words.get((field, value), f"{names.get(field, field)} {shown}")
        parts.append(part.replace(" ", "\N{NO-BREAK SPACE}"))  # lines break between parts alone
    return ", ".join(parts)


# Induction (Section 4.1)

INDUCTION_SETTING = ("aux_loss_weight", "shift_query_token", "positional_type")
INDUCTION_SETTINGS = [
    dict(zip(INDUCTION_SETTING, values, strict=True))
    for values in itertools.product((0.0, 0.2), (True, False), ("add", "concat", "no"))
]


def induction_name(aux_loss_weight: float, shift_query_token: bool, positional_type: str) -> str:
    """How file names call one of the 12 settings: `aux0.2_shift_add`."""
    return f"aux{aux_loss_weight:g}_{'shift' if shift_query_token else 'noshift'}_{positional_type}"


def sink_proportions(
    runs: pd.DataFrame,
    threshold: float = scores.SINK,
    min_accuracy: float = scores.SOLVED,
    lrs: Sequence[float] | None = None,
    magnitudes: bool = False,
    **panels: Any,
) -> Figure:
    """Share of second-layer heads that are BOS sinks, over runs that solve the task (see `scores.sink_shares`).

    runs: of induction. lrs: learning rates to pool, None for all. magnitudes: by the share of |w|, which is
    one for signed kernels too, instead of the published score. panels: see `bar_figure`.
    """
    score = "mag_attn_bos_global" if magnitudes else "rel_attn_bos_global"
    return bar_figure(
        scores.select(runs, lr=lrs),
        lambda group: scores.sink_shares(group, threshold, min_accuracy, score),
        f"share of heads with\n{'|w| share' if magnitudes else 'sink score'} > {threshold}",
        rule=f"runs with accuracy > {min_accuracy}",
        **panels,
    )


def induction_accuracies(runs: pd.DataFrame, lrs: Sequence[float] | None = None, **panels: Any) -> Figure:
    """Accuracy at the last position, over all runs. lrs and panels as in `sink_proportions`."""
    return bar_figure(scores.select(runs, lr=lrs), scores.accuracies, "accuracy", **panels)


MAP_COLOURS = LinearSegmentedColormap.from_list("attention", ["crimson", "#F4E9D3", "green"])


def draw_map(axes: Axes, weights: np.ndarray, names: Sequence[str]) -> None:
    """Attention weights (T, T), queries down, keys right, from −1 to 1; `names` of the T tokens."""
    picture = axes.pcolormesh(weights, cmap=MAP_COLOURS, vmin=-1, vmax=1, edgecolors="white", linewidth=0.3)
    picture.set_rasterized(False)
    places = np.arange(len(names)) + 0.5
    axes.set_xticks(places, names, rotation=90)
    axes.set_yticks(places, names)
    axes.tick_params(length=0, pad=1.5, labelsize=5)
    axes.set(aspect="equal")
    axes.invert_yaxis()
    axes.spines[:].set_visible(False)


def attention_map(weights: np.ndarray, names: Sequence[str]) -> Figure:
    """One head's attention on one sequence, as `draw_map`."""
    figure, axes = plt.subplots(figsize=(1.7, 1.7))
    draw_map(axes, weights, names)
    return figure


def attention_maps(models: dict[str, np.ndarray], names: Sequence[str], positions: dict[str, str]) -> Figure:
    """The heads (H, T, T) of each model, by attention type, on one sequence side by side, with the scale of colours
    and, above each head, the range of its weights. positions: how each model has them, `positional_type`."""
    num_heads = max(map(len, models.values()))
    figure, grid = plt.subplots(len(models), num_heads, figsize=(PAGE, 1.62 * len(models)), squeeze=False)
    for row, (title, heads) in zip(grid, models.items(), strict=True):
        for head, (axes, weights) in enumerate(zip(row, heads, strict=True)):
            draw_map(axes, weights, names)
            span = f"{weights.min():.1f} to {weights.max():.1f}".replace("-", "−")
            axes.set_title(f"head {head}: {span}", fontsize=6, pad=2)
        kind = ATTENTION[title]
        suffix = "" if kind.normalised else ",\nnot normalised"
        row[0].set_ylabel(f"{kind.label}{suffix}\n(positions: {positions[title]})\nquery", fontsize=7)
    for axes in grid[-1]:
        axes.set_xlabel("key", fontsize=6)
    figure.colorbar(grid[0, 0].collections[0], ax=grid, shrink=0.5, label="attention weight", extend="both", aspect=30)
    return figure


# Classification (Section 4.2)


def sparsity(runs: pd.DataFrame, lrs: Sequence[float] | None = None, magnitudes: bool = False, **panels: Any) -> Figure:
    """Largest weight of the CLS row over the row's sum, mean over heads (see `scores.sparsity_scores`).

    runs: of classification. magnitudes: of |w|, a share for signed kernels too. The rest as in
    `sink_proportions`.
    """
    score = "mag_attn_max" if magnitudes else "rel_attn_max"
    label = "largest |w| / Σ|w|" if magnitudes else "sparsity score"
    return bar_figure(scores.select(runs, lr=lrs), lambda group: scores.sparsity_scores(group, score), label, **panels)


def fliprate_name(vocab_size: int, use_mlp: bool, use_layernorm: bool) -> str:
    return f"fliprate_vocab{vocab_size}_{'mlp' if use_mlp else 'nomlp'}_{'ln' if use_layernorm else 'noln'}"


def flip_rate(runs: pd.DataFrame, lrs: Sequence[float] | None = None, **panels: Any) -> Figure:
    """Share of mixed sequences predicted as the sequence that their one top token is from (Figure 6; see
    `scores.flip_rates`). lrs and panels as in `sink_proportions`."""
    return bar_figure(scores.select(runs, lr=lrs), scores.flip_rates, "flip rate", **panels)


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
