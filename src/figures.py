"""The figures: one style, and one function for each figure.

Every function takes a table or arrays and returns a matplotlib Figure; `save` writes it as PDF and PNG.
"""

from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

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
    "attn_entropy": "attention entropy",
}


def mean_interval(values: np.ndarray, level: float = 0.95, resamples: int = 2000) -> tuple[float, float, float]:
    """Mean of `values` (runs,) over the runs, and its bootstrap percentile interval: (mean, low, high).

    As in rliable (Agarwal et al., 2021): it stays within the values seen, and is a point for a single run.
    """
    values = np.asarray(values, dtype=float)
    picks = np.random.default_rng(0).integers(len(values), size=(resamples, len(values)))
    low, high = np.quantile(values[picks].mean(1), [(1 - level) / 2, (1 + level) / 2])
    return values.mean(), low, high


def head_columns(runs: pd.DataFrame, metric: str, layer: int | None = None, prefix: str = "") -> list[str]:
    """The columns `{prefix}{layer}_{head}_{metric}` of a table, of one layer or of all."""
    pattern = rf"{prefix}{'[0-9]+' if layer is None else layer}_[0-9]+_{metric}"
    return list(runs.columns[runs.columns.str.fullmatch(pattern)])


def sink_shares(runs: pd.DataFrame, threshold: float = 0.9, min_accuracy: float = 0.95) -> pd.Series:
    """Of each induction run that solves the task, the share of its second layer's heads that are sinks.

    A run solves the task if its eval/acc_induction exceeds `min_accuracy`; a head is a sink if its
    rel_attn_bos_global exceeds `threshold`. Indexed as `runs`.
    """
    if "eval/acc_induction" not in runs:
        return pd.Series(dtype=float)
    scores = runs.loc[runs["eval/acc_induction"] > min_accuracy, head_columns(runs, "rel_attn_bos_global", 1)]
    return (scores > threshold).where(scores.notna()).mean(axis=1)


def sparsity_scores(runs: pd.DataFrame) -> pd.Series:
    """Of each classification run, the mean over its heads of rel_attn_max clipped to [0, 1]. Indexed as `runs`."""
    return runs[head_columns(runs, "rel_attn_max")].clip(0, 1).mean(axis=1).dropna()


def flip_rates(runs: pd.DataFrame) -> pd.Series:
    """Of each classification run, the largest avg_top1_dominance_rate of its heads. Indexed as `runs`."""
    names = runs.columns[runs.columns.str.fullmatch("mixing/[0-9]+_[0-9]+/avg_top1_dominance_rate")]
    return runs[names].max(axis=1).dropna()


def attention_bars(runs: pd.DataFrame, values: pd.Series, label: str) -> Figure:
    """Mean of `values` (indexed as `runs`) by attention type: kernels side by side, with and without
    normalisation, with 95% intervals over runs and their number; a red cross where there is none."""
    seen = set(runs["attention_type"]) - {"uniform"}
    kinds = {name: kind for name, kind in ATTENTION.items() if name in seen}
    kernels = list(dict.fromkeys(kind.label for kind in kinds.values()))
    figure, axes = plt.subplots(figsize=(COLUMN, 2.2))
    for name, kind in kinds.items():
        alone = kind.label == "softmax"  # which has no twin without normalisation
        x = kernels.index(kind.label) + (0 if alone else -0.2 if kind.normalised else 0.2)
        chosen = values[runs.loc[values.index, "attention_type"] == name]
        if chosen.empty:
            axes.plot(x, 0.03, "x", color="red", markersize=5, clip_on=False)
            continue
        mean, low, high = mean_interval(chosen.to_numpy())
        fill = KERNEL_COLOURS[kind.label] if kind.normalised else "white"
        axes.bar(x, mean, 0.36, color=fill, edgecolor=KERNEL_COLOURS[kind.label], linewidth=1)
        axes.errorbar(x, mean, [[mean - low], [high - mean]], color="black", linewidth=0.8, capsize=1.5)
        axes.annotate(str(len(chosen)), (x, 1.03), ha="center", fontsize=5.5, color="grey")
    axes.set_xticks(range(len(kernels)), kernels)
    axes.set(xlim=(-0.6, len(kernels) - 0.4), ylim=(0, 1.08), ylabel=label)
    axes.set_yticks([0, 0.5, 1])
    for normalised in (True, False):
        name = "normalised" if normalised else "not normalised"
        axes.bar(np.nan, np.nan, color="grey" if normalised else "white", edgecolor="grey", label=name)
    figure.legend(loc="outside upper center", ncols=2)
    return figure


def sink_share_bars(runs: pd.DataFrame, threshold: float = 0.9, min_accuracy: float = 0.95) -> Figure:
    """`attention_bars` of `sink_shares`."""
    return attention_bars(runs, sink_shares(runs, threshold, min_accuracy), f"heads with sink score > {threshold}")


def sparsity_bars(runs: pd.DataFrame) -> Figure:
    """`attention_bars` of `sparsity_scores`."""
    return attention_bars(runs, sparsity_scores(runs), "sparsity score")


def curve(runs: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Mean of a metric over runs and its 95% interval (columns mean, low, high), by training step.

    runs: with histories. A metric is a logged name, or what the names of one that each head has end with
    (`attn_entropy`), whose mean over heads it then is.
    """
    columns = [HISTORY + metric] if HISTORY + metric in runs else head_columns(runs, metric, prefix=HISTORY)
    points = [
        pd.Series(np.mean([v for v in run[columns] if np.ndim(v)], axis=0), index=run[HISTORY + "step"])
        for _, run in runs.iterrows()
    ]
    by_step = pd.concat(points).dropna().groupby(level=0)
    lines = {step: mean_interval(values.to_numpy()) for step, values in by_step}
    return pd.DataFrame.from_dict(lines, orient="index", columns=["mean", "low", "high"])


def training_curves(runs: pd.DataFrame, metrics: Sequence[str] = ("eval/loss", "eval/acc", "attn_entropy")) -> Figure:
    """Metrics (see `curve`) over training, a row each, by attention type: mean and 95% interval over runs."""
    figure, grid = plt.subplots(len(metrics), 1, figsize=(COLUMN, 0.4 + 1.3 * len(metrics)), sharex=True)
    for axes, metric in zip(np.atleast_1d(grid), metrics, strict=True):
        for name, group in runs.groupby("attention_type", sort=False):
            kind, line = ATTENTION[name], curve(group, metric)
            style = "-" if kind.normalised else "--"
            label = kind.label + ("" if kind.normalised or kind.label == "softmax" else ", not normalised")
            axes.plot(line.index, line["mean"], style, color=KERNEL_COLOURS[kind.label], label=label)
            axes.fill_between(line.index, line["low"], line["high"], color=KERNEL_COLOURS[kind.label], alpha=0.2, lw=0)
        axes.set_ylabel(LABELS.get(metric, metric))
        if metric.endswith("loss"):
            axes.set_yscale("log")
    axes.set_xlabel("training step")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=2)
    return figure
