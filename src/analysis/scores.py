"""What a table of runs says: a score for each run, and means over runs with their intervals."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import stdtrit

from src.analysis.selection import finished, last_version, require_columns, settled
from src.runs import HISTORY, LogError
from src.tasks import HeadScore, Solved, Task
from src.tasks.base import mean_clipped, share_above
from src.tasks.classification import Classification
from src.tasks.induction import SINK, Induction

SOLVED = Induction.solved.above  # accuracy above which a run is said to solve the paper's tasks


def head_columns(runs: pd.DataFrame, metric: str, layer: int | None = None, prefix: str = "") -> list[str]:
    """The columns `{prefix}{layer}_{head}_{metric}` of a table, of one layer or of all; LogError if there are none."""
    place = r"\d+" if layer is None else layer
    return columns_like(runs, rf"{prefix}{place}_\d+_{metric}")


def columns_like(runs: pd.DataFrame, pattern: str) -> list[str]:
    """The columns whose names match a regular expression in full; LogError with an example if there are none."""
    found = [name for name in runs.columns if re.fullmatch(pattern, name)]
    if not found:
        require_columns(runs, [pattern.replace(r"\d+", "0")])
        raise LogError(f"the table of runs has no column {pattern}")
    return found


def has_columns(runs: pd.DataFrame, pattern: str) -> bool:
    return any(re.fullmatch(pattern, name) for name in runs.columns)


# Scores: one number for each run, indexed as the settled table (see `settled`: as the table itself, if its labels are
# its own); a run that does not qualify is left out.


def measure(runs: pd.DataFrame, score: HeadScore, solved: Solved) -> pd.Series:
    """A task's score of each run, or of each that solves the task if the score is of such alone."""
    runs = settled(runs)
    heads = runs[columns_like(runs, score.columns)].astype(float)
    if score.solved_only:
        heads = heads[solving(runs, solved)]
    heads = heads[heads.notna().any(axis=1)]
    return pd.Series(score.over_heads(heads.to_numpy()), index=heads.index, dtype=float).dropna()


def solving(runs: pd.DataFrame, solved: Solved) -> pd.Series:
    """Which runs solve their task."""
    require_columns(runs, [solved.metric])
    return pd.Series(solved.of(runs[solved.metric].to_numpy(dtype=float)), index=runs.index)


def scored(runs: pd.DataFrame, task: type[Task]) -> pd.DataFrame:
    """The runs of a task with its scores as further columns; NaN where a run has none."""
    runs, found = settled(runs), {}
    for name, score in task.scores.items():
        try:
            found[name] = measure(runs, score, task.solved)
        except LogError:  # runs that lack what it is of: a second layer, say
            found[name] = np.nan
    others = runs.drop(columns=list(found), errors="ignore")
    return pd.concat([others, pd.DataFrame(found, index=runs.index)], axis=1)


def sink_shares(
    runs: pd.DataFrame, threshold: float = SINK, min_accuracy: float = SOLVED, score: str = "rel_attn_bos_global"
) -> pd.Series:
    """Of each induction run that solves the task, the share of its second layer's heads that are sinks.

    A run solves the task if its eval/acc_induction exceeds `min_accuracy`; a head is a sink if its `score`
    exceeds `threshold`: the published one, or mag_attn_bos_global, which is a share for signed kernels too.
    """
    shares = HeadScore(rf"1_\d+_{score}", "", share_above(threshold), solved_only=True)
    return measure(runs, shares, Solved("eval/acc_induction", above=min_accuracy))


def sparsity_scores(runs: pd.DataFrame, score: str = "rel_attn_max") -> pd.Series:
    """Of each classification run, the mean over its heads of `score` clipped to [0, 1]: the published one, or
    mag_attn_max, which is a share for signed kernels too."""
    return measure(runs, HeadScore(rf"\d+_\d+_{score}", "", mean_clipped), Classification.solved)


def flip_rates(runs: pd.DataFrame) -> pd.Series:
    """Of each classification run, the largest avg_top1_dominance_rate of its heads."""
    return measure(runs, Classification.scores["flip_rate"], Classification.solved)


def accuracies(runs: pd.DataFrame, metric: str = "eval/acc_induction") -> pd.Series:
    """Each run's final accuracy."""
    require_columns(runs, [metric])
    return settled(runs)[metric].astype(float).dropna()


def first_token_shares(runs: pd.DataFrame) -> pd.Series:
    """Of each induction run, the mean over its second layer's heads of BOS's share of the sum of |w|."""
    return settled(runs)[head_columns(runs, "mag_attn_bos_global", layer=1)].mean(axis=1).dropna()


# Over runs


def mean_interval(
    values: np.ndarray,
    seeds: np.ndarray | None = None,
    level: float = 0.95,
    bounds: tuple[float, float] = (0, 1),
    weights: np.ndarray | None = None,
) -> tuple[Any, Any, Any]:
    """Mean of `values` (runs,) and Student's t interval of it over seeds: (mean, low, high), numbers; arrays (K,) for
    `values` (runs, K).

    Seeds (runs,), not runs, are what is independent: runs of one seed share their data, whatever else differs, so
    that the standard error is that of a mean over clusters. By default every run has its own, and weighs 1
    (`weights` (runs,)). The interval is cut to `bounds`, between which a mean can be. It is a point where all seeds
    agree, and for a single one, which says nothing of the spread.
    """
    values = np.asarray(values, dtype=float)
    weights = np.ones(len(values)) if weights is None else weights
    _, member = np.unique(np.arange(len(values)) if seeds is None else seeds, return_inverse=True)
    sizes = np.bincount(member, weights)  # by seed
    num, totals = len(sizes), np.zeros((len(sizes), *values.shape[1:]))
    np.add.at(totals, member, (weights * values.T).T)
    mean = totals.sum(axis=0) / sizes.sum()
    if num == 1:
        return mean, mean, mean
    error = np.sqrt(num / (num - 1) * np.sum((totals - np.multiply.outer(sizes, mean)) ** 2, axis=0)) / sizes.sum()
    reach = stdtrit(num - 1, (1 + level) / 2) * error
    return mean, np.maximum(mean - reach, bounds[0]), np.minimum(mean + reach, bounds[1])


def bounds_of(values: pd.Series) -> tuple[float, float]:
    """Between what a mean of such values can be: shares, from 0 to 1, stay there, and what is never negative is not."""
    return 0 if (values >= 0).all() else -np.inf, 1 if values.between(0, 1).all() else np.inf


def by_type(runs: pd.DataFrame, values: pd.Series, equally: Sequence[str] = ()) -> pd.DataFrame:
    """`values` (indexed as the settled `runs`, perhaps fewer) by attention type: columns mean, low, high (see
    `mean_interval`), runs and seeds: how many there are of each.

    Every run weighs the same, or every combination of the fields `equally`, whatever its number of runs; seeds are
    then the fewest that one of them has. Where that is a single one, whose spread nobody knows, the interval is a
    point. Intervals of values that are shares, from 0 to 1, stay there.
    """
    rows, bounds, fields = {}, bounds_of(values), dict.fromkeys(["attention_type", "seed", *equally])
    for name, group in settled(runs).loc[values.index, list(fields)].groupby("attention_type", sort=False):
        weights, num_seeds = None, group["seed"].nunique()
        if equally:
            of_cells = group.groupby(list(equally), dropna=False)["seed"]
            weights, num_seeds = 1 / of_cells.transform("size").to_numpy(), int(of_cells.nunique().min())
        own, seeds = values[group.index].to_numpy(), group["seed"].to_numpy()
        mean, low, high = mean_interval(own, seeds, bounds=bounds, weights=weights)
        rows[name] = mean, *((low, high) if num_seeds > 1 else (mean, mean)), len(group), num_seeds
    return pd.DataFrame.from_dict(rows, orient="index", columns=["mean", "low", "high", "runs", "seeds"])


def curve(runs: pd.DataFrame, metric: str, layer: int | None = None) -> pd.DataFrame:
    """Mean of a metric over runs and its interval (columns mean, low, high), by training step.

    runs: with histories. A metric is a logged name, or what the names of one that each head has end with
    (`attn_entropy`), whose mean over heads, of a layer or of all, it then is. LogError where no run has it.
    """
    runs = with_history(runs)
    columns = [HISTORY + metric] if HISTORY + metric in runs else head_columns(runs, metric, layer, HISTORY)
    points = []
    for _, run in runs.iterrows():
        if heads := [values for values in run[columns] if np.ndim(values)]:  # none in a layer that the run lacks
            mean = pd.DataFrame(np.array(heads, dtype=float)).mean().to_numpy()  # of heads that attend to anything
            points.append(pd.DataFrame({"step": run[HISTORY + "step"], "seed": run["seed"], "value": mean}))
    if not points:
        raise LogError(f"no run has a history of {metric}")
    table = pd.concat(points).dropna()
    least, most = bounds_of(table["value"])
    bounds = least, np.inf if metric.endswith("loss") else most
    lines = {
        step: mean_interval(group["value"].to_numpy(), group["seed"].to_numpy(), bounds=bounds)
        for step, group in table.groupby("step")
    }
    return pd.DataFrame.from_dict(lines, orient="index", columns=["mean", "low", "high"])


def with_history(runs: pd.DataFrame) -> pd.DataFrame:
    """The finished runs whose history the table has, those of `last_version`; LogError if there is none."""
    require_columns(runs, ["seed"])
    runs = last_version(settled(runs))
    has = runs[HISTORY + "step"].map(np.ndim) == 1 if HISTORY + "step" in runs else pd.Series(False, index=runs.index)
    if not (has & finished(runs)).any():
        raise LogError("no finished run has a history; load the runs with history=True")
    return runs[has & finished(runs)]
