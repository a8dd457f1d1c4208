"""The benchmark of functions made against sinks: who sinks where, and sink profiles."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from src.analysis import mitigations
from src.analysis.figures.style import PAGE, add_note, looks, or_sentence, over_seeds
from src.analysis.mitigations import GU, PAPERS, SCENES, THRESHOLDS
from src.analysis.scores import mean_interval
from src.analysis.selection import require_runs
from src.model.registry import describe

GROUPS = {
    "paper": "the paper's",
    "outlet": "with an outlet",
    "sparse": "sparse",
    "gate": "with a gate",
    "scale": "scaled",
    "own": "own",
}
HALF = 0.5  # of the runs of a cell: a cross says that fewer solve the task
OF_CELLS = f"×: at most {HALF:.0%} of the runs solve the task. Each function at its best learning rate by loss"


@or_sentence
def overview(runs: pd.DataFrame) -> Figure:
    """Functions × scenes: the colour is the mean area under the sink profile, which is written in the cell; a cross
    marks where no more than half of the runs solve the task, and a blank cell has no runs."""
    runs = mitigations.with_fields(runs)
    found = {SCENES[name].title: rows for name, rows in mitigations.summaries(runs).items()}
    require_runs(runs if found else runs[:0], "of a task of the benchmark")
    kinds = _in_groups({kind for rows in found.values() for kind in rows.index})
    figure, axes = plt.subplots(figsize=(min(PAGE, 3 + 0.5 * len(found)), 1.5 + 0.2 * len(kinds)))
    image = draw_areas(axes, found, kinds)
    figure.colorbar(image, label="area under the sink profile", pad=0.01)
    figure.suptitle("Who sinks where: functions made against sinks, by task", fontsize=8)
    of_scenes = [mitigations.of_scene(runs, name) for name in SCENES]
    add_note(figure, OF_CELLS, pd.concat(of_scenes)[["attention_type", "seed"]])
    return figure


@or_sentence
def optimizers(runs: pd.DataFrame) -> Figure:
    """Functions × optimisers, a panel for each scene that was trained under several; cells as in `overview`."""
    runs = mitigations.with_fields(runs)
    found = {name: mitigations.by_optimizer(runs, name) for name in SCENES}
    found = {name: columns for name, columns in found.items() if len(columns) > 1}
    require_runs(runs if found else runs[:0], "of a task under several optimisers")
    kinds = _in_groups({kind for columns in found.values() for rows in columns.values() for kind in rows.index})
    widths = {"width_ratios": [len(columns) for columns in found.values()]}  # cells of one size
    size = PAGE, 1.6 + 0.3 * len(kinds)
    figure, grid = plt.subplots(1, len(found), figsize=size, sharey=True, squeeze=False, gridspec_kw=widths)
    for axes, (name, columns) in zip(grid[0], found.items(), strict=True):
        image = draw_areas(axes, columns, kinds, narrow=True)
        axes.set_title(SCENES[name].title)
    figure.colorbar(image, ax=grid, label="area under\nthe sink profile", pad=0.01)
    figure.suptitle("Who sinks under which optimiser", fontsize=8)
    fields = mitigations.OPTIMIZERS.values()
    shown = [mitigations.of_scene(runs, name, **options) for name in found for options in fields]
    shown = pd.concat([group[group["attention_type"].isin(kinds)] for group in shown])
    add_note(figure, OF_CELLS, shown[["attention_type", "seed"]])
    return figure


def draw_areas(
    axes: Axes, columns: Mapping[str, pd.DataFrame], kinds: Sequence[str], narrow: bool = False
) -> AxesImage:
    """A cell for each of the kinds and columns, which are rows of `mitigations.summary` by name; in narrow cells the
    cross is below the number, and the columns' names are upright."""
    cross = "\n×" if narrow else " ×"
    names = {"rotation": 90} if narrow else {"rotation": 30, "ha": "right", "rotation_mode": "anchor"}
    areas = np.full((len(kinds), len(columns)), np.nan)
    for column, rows in enumerate(columns.values()):
        for kind, row in rows.iterrows():
            place = kinds.index(kind)
            if isinstance(row.get("area"), tuple):
                areas[place, column] = row["area"][0]
            solved = row["solved"] > HALF * row["runs"]
            shown = "" if np.isnan(areas[place, column]) else f"{areas[place, column]:.2f}"
            ink = "white" if areas[place, column] > 0.6 else "black"
            axes.text(
                column, place, shown if solved else shown + cross, ha="center", va="center", color=ink, fontsize=6
            )
    image = axes.imshow(areas, cmap="YlGnBu", vmin=0, vmax=1, aspect="auto")
    axes.set_xticks(range(len(columns)), list(columns), **names)
    shown = looks(kinds)
    axes.set_yticks(range(len(kinds)), [shown[kind].title for kind in kinds])
    for border in np.flatnonzero(np.diff([list(GROUPS).index(describe(kind).group) for kind in kinds])):
        axes.axhline(border + 0.5, color="white", linewidth=2)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    return image


@or_sentence
def sink_profiles(runs: pd.DataFrame, scene: str = "trigger") -> Figure:
    """The sink profile F(τ) of each function in a scene, a panel for each group of functions, with its 95% band over
    seeds; softmax, dashed, in each panel."""
    chosen = mitigations.of_scene(mitigations.with_fields(runs), scene)
    chosen = chosen[chosen["state"] == "finished"] if len(chosen) else chosen
    require_runs(chosen, f"of {SCENES[scene].title}")
    kinds = _in_order(set(chosen["attention_type"]))
    groups = [group for group in GROUPS if any(describe(kind).group == group for kind in kinds)]
    figure, grid = plt.subplots(1, len(groups), figsize=(PAGE, 3.2), sharey=True, squeeze=False)
    shown = looks(kinds)
    for axes, group in zip(grid[0], groups, strict=True):
        for kind in kinds:
            if kind == "softmax" and group != "paper":
                draw_profile(axes, chosen, scene, kind, color="black", linestyle=":", label=None)
            elif describe(kind).group == group:
                look = shown[kind]
                draw_profile(axes, chosen, scene, kind, color=look.colour, linestyle=look.line, label=look.title)
        for threshold in (GU, PAPERS):
            axes.axvline(threshold, color="lightgrey", linewidth=0.6, zorder=0)
        axes.set(title=GROUPS[group], xlabel="threshold τ", xlim=(0, 1), ylim=(-0.02, 1.02))
        axes.legend(fontsize=6, loc="upper left", bbox_to_anchor=(-0.1, -0.35), handlelength=1.2, borderaxespad=0)
    grid[0, 0].set_ylabel("share of heads with sink score > τ")
    figure.suptitle(f"Sink profiles: {SCENES[scene].title}", fontsize=8)
    notes = [over_seeds(chosen, "Mean")] + ["Dotted: softmax"] * ("softmax" in kinds and len(groups) > 1)
    notes += ["Grey: thresholds in use, 0.3 and 0.9", "Each function at its best learning rate by loss"]
    add_note(figure, ". ".join(notes), chosen[["attention_type", "seed"]])
    figure.draw_without_rendering()  # the layout of a figure knows of legends below axes the second time
    return figure


def draw_profile(axes: Axes, runs: pd.DataFrame, scene: str, kind: str, **line) -> None:
    """The mean profile of one function's runs, and its band."""
    group = runs[runs["attention_type"] == kind]
    shares = mitigations.profile(mitigations.heads_of(group, SCENES[scene].sink))
    mean, low, high = mean_interval(shares, group["seed"].to_numpy())
    axes.step(THRESHOLDS, mean, where="post", alpha=0.8, **line)
    axes.fill_between(THRESHOLDS, low, high, step="post", color=line["color"], alpha=0.15, linewidth=0)


def _in_groups(kinds: set[str]) -> list[str]:
    return [kind for group in GROUPS for kind in _in_order(kinds) if describe(kind).group == group]


def _in_order(kinds: set[str]) -> list[str]:
    known = mitigations.TYPES
    return sorted(kinds, key=lambda kind: (known.index(kind) if kind in known else len(known), kind))
