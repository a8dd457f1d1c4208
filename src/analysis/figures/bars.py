"""Bars of attention types: the share of sinks, accuracy, sparsity, flip rate."""

import itertools
import textwrap
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from src.analysis import scores
from src.analysis.figures.style import COLUMN, KERNEL_COLOURS, PAGE, PUBLISHED_TYPES, add_note, panel_title
from src.model.registry import ATTENTION

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
