"""What a table of runs says: a score for each run, and means over runs with their intervals."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import t

from src.config import DEFAULTS, FIELDS
from src.runs import HISTORY, LogError

SOLVED = 0.95  # accuracy above which a run is said to solve its task
SINK = 0.9  # sink score above which a head is a sink


# What tells the runs of a task apart, in the paper's figures.
SETTINGS = {
    "induction": ("lr", "num_layers", "num_heads", "aux_loss_weight", "shift_query_token", "positional_type"),
    "classification": ("lr", "num_layers", "num_heads", "vocab_size", "use_mlp", "use_layernorm"),
}


def require_columns(runs: pd.DataFrame, names: Sequence[str]) -> None:
    """LogError that names what the table lacks."""
    if not len(runs.columns):
        raise LogError("the table of runs is empty; train some, or name another source")
    missing = [name for name in names if name not in runs]
    if missing:
        raise LogError(f"the table of runs lacks {', '.join(missing)}; is it of the other task, or of other code?")


def of_task(runs: pd.DataFrame, task: str) -> pd.DataFrame:
    """The finished runs of a task; LogError where there are none, or where it lacks what tells them apart."""
    require_columns(runs, ["task", "state", "attention_type", "seed", *SETTINGS[task]])
    chosen = select(runs, task=task)
    if not len(chosen):
        raise LogError(f"the table has no finished run of {task}; train some, or name another source")
    return chosen


def commonest(runs: pd.DataFrame, name: str) -> Any:
    """The value of a field that most runs have; where several are as common, the default of RunConfig if it is one."""
    counts = runs[name].value_counts()
    most = list(counts.index[counts == counts.max()])
    default = DEFAULTS[name]
    return default if default in most else min(most)


def select(runs: pd.DataFrame, **fields: Any) -> pd.DataFrame:
    """The finished runs whose fields have these values: one each, a list of them, or None for any."""
    require_columns(runs, ["state", *fields])
    chosen = runs["state"] == "finished"
    for name, values in fields.items():
        if values is not None:
            chosen &= runs[name].isin(values if isinstance(values, list | tuple) else [values])
    return runs[chosen]


def usual(runs: pd.DataFrame, *names: str) -> pd.DataFrame:
    """The runs that have the commonest value of each of these fields."""
    for name in names if len(runs) else ():
        runs = runs[runs[name] == commonest(runs, name)]
    return runs


def head_columns(runs: pd.DataFrame, metric: str, layer: int | None = None, prefix: str = "") -> list[str]:
    """The columns `{prefix}{layer}_{head}_{metric}` of a table, of one layer or of all; LogError if there are none."""
    pattern = rf"{prefix}{'[0-9]+' if layer is None else layer}_[0-9]+_{metric}"
    found = list(runs.columns[runs.columns.str.fullmatch(pattern)])
    if not found:
        require_columns(runs, [f"{prefix}{layer or 0}_0_{metric}"])
    return found


# Scores: one number for each run, indexed as the table; a run that does not qualify is left out.


def sink_shares(
    runs: pd.DataFrame, threshold: float = SINK, min_accuracy: float = SOLVED, score: str = "rel_attn_bos_global"
) -> pd.Series:
    """Of each induction run that solves the task, the share of its second layer's heads that are sinks.

    A run solves the task if its eval/acc_induction exceeds `min_accuracy`; a head is a sink if its `score`
    exceeds `threshold`: the published one, or mag_attn_bos_global, which is a share for signed kernels too.
    """
    require_columns(runs, ["eval/acc_induction"])
    scores = runs.loc[runs["eval/acc_induction"] > min_accuracy, head_columns(runs, score, layer=1)]
    return (scores > threshold).where(scores.notna()).mean(axis=1).dropna()


def sparsity_scores(runs: pd.DataFrame, score: str = "rel_attn_max") -> pd.Series:
    """Of each classification run, the mean over its heads of `score` clipped to [0, 1]: the published one, or
    mag_attn_max, which is a share for signed kernels too."""
    return runs[head_columns(runs, score)].clip(0, 1).mean(axis=1).dropna()


def flip_rates(runs: pd.DataFrame) -> pd.Series:
    """Of each classification run, the largest avg_top1_dominance_rate of its heads."""
    names = runs.columns[runs.columns.str.fullmatch("mixing/[0-9]+_[0-9]+/avg_top1_dominance_rate")]
    require_columns(runs, names if len(names) else ["mixing/0_0/avg_top1_dominance_rate"])
    return runs[names].max(axis=1).dropna()


def accuracies(runs: pd.DataFrame, metric: str = "eval/acc_induction") -> pd.Series:
    """Each run's final accuracy."""
    require_columns(runs, [metric])
    return runs[metric].dropna()


def first_token_shares(runs: pd.DataFrame) -> pd.Series:
    """Of each induction run, the mean over its second layer's heads of BOS's share of the sum of |w|."""
    return runs[head_columns(runs, "mag_attn_bos_global", layer=1)].mean(axis=1).dropna()


# Over runs


def mean_interval(
    values: np.ndarray,
    seeds: np.ndarray | None = None,
    level: float = 0.95,
    bounds: tuple[float, float] = (0, 1),
) -> tuple[float, float, float]:
    """Mean of `values` (runs,) and Student's t interval of it over seeds: (mean, low, high).

    Seeds (runs,), not runs, are what is independent: runs of one seed share their data, whatever else differs, so
    that the standard error is that of a mean over clusters. By default every run has its own. The interval is cut
    to `bounds`, between which a mean can be. It is a point where all seeds agree, and for a single one, which says
    nothing of the spread.
    """
    values = np.asarray(values, dtype=float)
    _, member = np.unique(np.arange(len(values)) if seeds is None else seeds, return_inverse=True)
    totals, counts = np.bincount(member, values), np.bincount(member)  # by seed
    mean, num = values.mean(), len(totals)
    if num == 1:
        return mean, mean, mean
    error = np.sqrt(num / (num - 1) * np.sum((totals - mean * counts) ** 2)) / len(values)
    reach = t.ppf((1 + level) / 2, num - 1) * error
    return mean, max(mean - reach, bounds[0]), min(mean + reach, bounds[1])


def by_type(runs: pd.DataFrame, values: pd.Series) -> pd.DataFrame:
    """`values` (indexed as `runs`, perhaps fewer) by attention type: columns mean, low, high (see
    `mean_interval`), runs and seeds: how many there are of each."""
    rows = {}
    for name, group in runs.loc[values.index].groupby("attention_type", sort=False):
        seeds = group["seed"].to_numpy()
        rows[name] = *mean_interval(values[group.index].to_numpy(), seeds), len(group), len(np.unique(seeds))
    return pd.DataFrame.from_dict(rows, orient="index", columns=["mean", "low", "high", "runs", "seeds"])


def curve(runs: pd.DataFrame, metric: str, layer: int | None = None) -> pd.DataFrame:
    """Mean of a metric over runs and its interval (columns mean, low, high), by training step.

    runs: with histories. A metric is a logged name, or what the names of one that each head has end with
    (`attn_entropy`), whose mean over heads, of a layer or of all, it then is.
    """
    columns = [HISTORY + metric] if HISTORY + metric in runs else head_columns(runs, metric, layer, HISTORY)
    runs = runs[runs[HISTORY + "step"].map(np.ndim) == 1]
    if not len(runs):
        raise LogError(f"no run has a history of {metric}; load the runs with history=True")
    points = []
    for _, run in runs.iterrows():
        if heads := [values for values in run[columns] if np.ndim(values)]:  # none in a layer that the run lacks
            mean = np.mean(heads, axis=0)
            points.append(pd.DataFrame({"step": run[HISTORY + "step"], "seed": run["seed"], "value": mean}))
    bounds = (0, np.inf if metric.endswith("loss") else 1)
    lines = {
        step: mean_interval(group["value"].to_numpy(), group["seed"].to_numpy(), bounds=bounds)
        for step, group in pd.concat(points).dropna().groupby("step")
    }
    return pd.DataFrame.from_dict(lines, orient="index", columns=["mean", "low", "high"])


def what_varies(runs: pd.DataFrame) -> str:
    """The fields in which the runs differ, attention type aside, and their values: `seed 0–4, lr 0.001, 0.01`."""
    parts = []
    for name in FIELDS:
        values = sorted(runs[name].dropna().unique()) if name in runs and name != "attention_type" else []
        if len(values) > 1:
            whole = name == "seed" and values == list(range(int(values[0]), int(values[-1]) + 1))
            listed = f"{values[0]:.0f}–{values[-1]:.0f}" if whole else "/".join(map(str, values))
            parts.append(f"{name} {listed}")
    return ", ".join(parts) or "nothing"
