"""Bars of attention types: the share of sinks, accuracy, sparsity, flip rate, and any other score of a task."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib.pyplot as plt
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
from src.analysis.selection import require_columns, require_runs, select, settled, task_of
from src.runs import LogError
from src.tasks import HeadScore, Solved

CROSS = {"marker": "x", "color": "red", "markersize": 5, "linestyle": "none"}


def places(shown: dict[str, Look]) -> tuple[dict[str, float], dict[str, float], dict[str, tuple[float, float]]]:
    """Where the bars stand: of each type, of each kernel's label in the middle of its types, and from where to where
    each section reaches."""
    at, ticks, spans = {}, {}, {}
    x = 0.0
    for section, members in itertools.groupby(shown.items(), key=lambda item: item[1].section):
        start = x
        for kernel, twins in itertools.groupby(members, key=lambda item: item[1].kernel):
            names = [name for name, _ in twins]
            at |= {name: x + 0.4 * (i - (len(names) - 1) / 2) for i, name in enumerate(names)}
            ticks[kernel] = x
            x += 1
        spans[section] = start - 0.5, x - 0.5
        x += 0.5  # between sections
    return at, ticks, spans


def draw_bars(
    axes: Axes,
    runs: pd.DataFrame,
    values: pd.Series,
    shown: dict[str, Look],
    *,
    size: float = 6,
    equally: Sequence[str] = (),
    top: float = 1,
) -> None:
    """Mean of `values` (indexed as `runs`) by attention type: kernels side by side, with and without
    normalisation, with intervals over seeds; a red cross where types were trained and no run has a value, blank
    where none was trained. Above, in `size` points: how many have, of how many were trained if not all have.
    top: the largest value there is room for."""
    at, ticks, spans = places(shown)
    summary, trained = scores.by_type(runs, values, equally), runs["attention_type"].value_counts()
    summary = summary.loc[[name for name in at if name in summary.index]]
    draw_intervals(axes, [at[name] for name in summary.index], summary, [shown[name] for name in summary.index])
    trained = {name: trained[name] for name in at if name in trained.index}
    crosses = [at[name] for name in trained if name not in summary.index]
    if crosses:
        axes.plot(crosses, [0.03 * top] * len(crosses), **CROSS, clip_on=False)
    for name, of in trained.items():
        count = int(summary["runs"].get(name, 0))
        text = f"{count}" if count == of else f"{count}/{of}"
        height = 1.08
        if len(text) > 4:  # wider than a bar, and its neighbour's would run into it
            text, height = text.replace("/", "/\n"), 1.02
        style = {"fontsize": size, "color": "dimgrey", "linespacing": 0.9}
        axes.text(at[name], height * top, text, ha="center", **style)
    axes.set_xticks(list(ticks.values()), [label for _, label in ticks])
    ends = list(spans.values())
    axes.set(xlim=(ends[0][0] - 0.1, ends[-1][1] + 0.1), ylim=(0, 1.2 * top))
    if top == 1:
        axes.set_yticks([0, 0.5, 1])
    for section, (start, end) in spans.items() if len(spans) > 1 else ():
        where = {"xy": ((start + end) / 2, 1), "xycoords": ("data", "axes fraction")}
        axes.annotate(section, **where, ha="center", fontsize=size, style="italic")
        axes.axvspan(start, end, color="black", alpha=0.03, linewidth=0)


def draw_intervals(axes: Axes, at: Sequence[float], bars: pd.DataFrame, of: Sequence[Look]) -> None:
    """Bars, rows of `scores.by_type`, with their intervals, where there are several seeds."""
    colours = [look.colour for look in of]
    faces = [look.colour if look.normalised else "white" for look in of]
    axes.bar(at, bars["mean"], 0.36, color=faces, edgecolor=colours, linewidth=1)
    reach = [bars["mean"] - bars["low"], bars["high"] - bars["mean"]]
    reach = [sides.where(bars["seeds"] > 1) for sides in reach]
    axes.errorbar(at, bars["mean"], reach, fmt="none", ecolor="black", elinewidth=0.8, capsize=1.5)


@or_sentence
def bar_figure(
    runs: pd.DataFrame,
    score: Callable[[pd.DataFrame], pd.Series],
    label: str,
    *,
    rule: str = "",
    by: Sequence[str] = (),
    columns: int = 1,
    types: Sequence[str] | None = None,
    equally: Sequence[str] = (),
) -> Figure:
    """`draw_bars` of a score of each run, a panel for each value of the fields `by` (one for no field).

    types: Attention types that have a place; by default those of the table. equally: fields each combination of
    whose values weighs the same in a bar, whatever its number of runs. The title says what the runs have in common,
    the note the `rule` by which they are chosen, and in what they differ.
    """
    require_columns(runs, ["seed", "attention_type", *by])
    require_runs(runs, f"to measure “{label}” by")
    runs = settled(runs)
    shown = looks(types_of(runs) if types is None else types)
    groups = list(runs.groupby(list(by), dropna=False)) if by else [((), runs)]
    measured = [score(group) for _, group in groups]
    if not rule and all(of_runs.empty for of_runs in measured):
        raise LogError(f"no run has a value of “{label}”")
    columns = min(columns, len(groups))
    figure, grid = panels(len(groups), columns, shown)
    top = max([1, *(of_runs.max() for of_runs in measured if len(of_runs))])
    room = {"size": 6 if figure.get_figwidth() / columns / len(shown) > 0.22 else 4.5, "top": top}
    for axes, (values, group), of_runs in zip(grid.flat, groups, measured, strict=False):
        draw_bars(axes, group, of_runs, shown, equally=equally, **room)
        if by:
            text = balanced(panel_title(by, values, task_of(runs)), 120 // columns - 4)
            pad = 3 if len({look.section for look in shown.values()}) == 1 else 9
            axes.set_title(text, fontsize=7 if columns < 4 else 6, pad=pad)
    label_axes(figure, grid, len(groups), label, shown)
    bars = runs.loc[[place for values in measured for place in values.index]]
    bars = bars[bars["attention_type"].isin(shown)]
    note = [over_seeds(bars, "Mean", equally), "number of runs (of those trained)"] + [rule] * bool(rule)
    each = f"each {'combination of ' if len(equally) > 1 else ''}{', '.join(equally)}"
    note += [f"{each} weighs the same"] * bool(equally)
    twins = any(not look.normalised for look in shown.values())
    crosses = any(line.get_marker() == CROSS["marker"] for axes in grid.flat for line in axes.lines)
    add_legend(figure, title(figure, runs, by), *bar_keys(filling(shown) if twins else [], crosses), columns=3)
    add_note(figure, "; ".join(note), bars, by)
    return figure


def panels(num: int, columns: int, shown: dict[str, Look]) -> tuple[Figure, Any]:
    """A figure with room for `num` panels of these types; those of its grid that are too many are not visible."""
    num_rows = -(-num // columns)
    many = len({look.kernel for look in shown.values()}) > 8
    width = PAGE if columns > 1 or many else COLUMN
    height = (1.5 if many else 1) + num_rows * (1.55 if columns < 3 else 1.15)
    figure, grid = plt.subplots(num_rows, columns, figsize=(width, height), sharex=True, sharey=True, squeeze=False)
    for axes in grid.flat[num:]:
        axes.set_visible(False)
    return figure, grid


def label_axes(figure: Figure, grid: Any, num: int, label: str, shown: dict[str, Look]) -> None:
    """Names below the lowest panel of each column, aslant where they would overlap; the score's at the left."""
    num_rows, columns = grid.shape
    names = dict.fromkeys(look.kernel for look in shown.values())
    room = 0.85 * figure.get_figwidth() / columns / len(names)  # inches for each
    aslant = max(len(name) for _, name in names) * 6.5 * 0.5 / 72 > room
    for axes in grid.flat[max(0, num - columns) : num]:
        axes.tick_params(axis="x", labelbottom=True, labelsize=6.5)
        if aslant:
            plt.setp(axes.get_xticklabels(), rotation=50, ha="right", rotation_mode="anchor")
    if num_rows == 1:
        grid[0, 0].set_ylabel(balanced(label, 20))
    else:
        figure.supylabel(balanced(label, 28 * num_rows), fontsize=8)


def bar_keys(fillings: Sequence[str], crosses: bool) -> tuple[list[Any], list[str]]:
    """What the filling of bars means, where there are both, and a cross, where there is one: keys and names for a
    legend."""
    keys = [plt.Rectangle((0, 0), 1, 1, facecolor=colour, edgecolor="grey") for colour in ("grey", "white")]
    keys, names = keys[: len(fillings)], list(fillings)
    return (keys + [plt.Line2D([], [], **CROSS)], [*names, "no run qualifies"]) if crosses else (keys, names)


@or_sentence
def score_bars(runs: pd.DataFrame, score: HeadScore, solved: Solved, **options: Any) -> Figure:
    """Any task's score (see `scores.measure`) as bars. options: see `bar_figure`."""
    rule = f"runs with {solved}" if score.solved_only else ""
    return bar_figure(
        select(runs), lambda group: scores.measure(group, score, solved), score.label, rule=rule, **options
    )


# Induction (Section 4.1)

INDUCTION_SETTING = ("aux_loss_weight", "shift_query_token", "positional_type")
INDUCTION_SETTINGS = [
    dict(zip(INDUCTION_SETTING, values, strict=True))
    for values in itertools.product((0.0, 0.2), (True, False), ("add", "concat", "no"))
]


def induction_name(aux_loss_weight: float, shift_query_token: bool, positional_type: str) -> str:
    """How file names call one of the 12 settings: `aux0.2_shift_add`."""
    return f"aux{aux_loss_weight:g}_{'shift' if shift_query_token else 'noshift'}_{positional_type}"


@or_sentence
def sink_proportions(
    runs: pd.DataFrame,
    threshold: float = scores.SINK,
    min_accuracy: float = scores.SOLVED,
    lrs: Sequence[float] | None = None,
    magnitudes: bool = False,
    **options: Any,
) -> Figure:
    """Share of second-layer heads that are BOS sinks, over runs that solve the task (see `scores.sink_shares`).

    runs: of induction. lrs: learning rates to pool, None for all. magnitudes: by the share of |w|, which is
    one for signed kernels too, instead of the published score. options: see `bar_figure`.
    """
    score = "mag_attn_bos_global" if magnitudes else "rel_attn_bos_global"
    return bar_figure(
        select(runs, lr=lrs),
        lambda group: scores.sink_shares(group, threshold, min_accuracy, score),
        f"share of heads with {'|w| share' if magnitudes else 'sink score'} > {threshold}",
        rule=f"runs with accuracy > {min_accuracy}",
        **options,
    )


@or_sentence
def induction_accuracies(runs: pd.DataFrame, lrs: Sequence[float] | None = None, **options: Any) -> Figure:
    """Accuracy at the last position, over all runs. lrs and options as in `sink_proportions`."""
    return bar_figure(select(runs, lr=lrs), scores.accuracies, "accuracy", **options)


# Classification (Section 4.2)


@or_sentence
def sparsity(
    runs: pd.DataFrame, lrs: Sequence[float] | None = None, magnitudes: bool = False, **options: Any
) -> Figure:
    """Largest weight of the CLS row over the row's sum, mean over heads (see `scores.sparsity_scores`).

    runs: of classification. magnitudes: of |w|, a share for signed kernels too. The rest as in
    `sink_proportions`.
    """
    score = "mag_attn_max" if magnitudes else "rel_attn_max"
    label = "largest |w| / Σ|w|" if magnitudes else "sparsity score"
    return bar_figure(select(runs, lr=lrs), lambda group: scores.sparsity_scores(group, score), label, **options)


def fliprate_name(vocab_size: int, use_mlp: bool, use_layernorm: bool) -> str:
    return f"fliprate_vocab{vocab_size}_{'mlp' if use_mlp else 'nomlp'}_{'ln' if use_layernorm else 'noln'}"


@or_sentence
def flip_rate(runs: pd.DataFrame, lrs: Sequence[float] | None = None, **options: Any) -> Figure:
    """Share of mixed sequences predicted as the sequence that their one top token is from (Figure 6; see
    `scores.flip_rates`). lrs and options as in `sink_proportions`."""
    return bar_figure(select(runs, lr=lrs), scores.flip_rates, "flip rate", **options)
