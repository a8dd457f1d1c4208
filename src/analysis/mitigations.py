"""Functions made against sinks: each at its best learning rate, its sink profile, and the benchmark's tables.

A *scene* is a task in a setting of its blocks, a column of the benchmark. The learning rate of a function in a scene is
chosen by its loss on the task alone, never by its sinks.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from src.analysis.rates import at_best_rates
from src.analysis.scores import columns_like, has_columns, mean_interval, solving
from src.analysis.selection import alike, among, settled, task_class
from src.config import DEFAULTS
from src.model.attention import PAPER
from src.model.registry import ATTENTION
from src.runs import COMMITTED
from src.tasks import Task

RESULTS = COMMITTED.with_name("mitigations.parquet")
SOURCES = (RESULTS, COMMITTED)  # the paper's own runs of softmax and sigmoid count
THRESHOLDS = np.linspace(0, 1, 101)
GU, PAPERS = 0.3, 0.9  # thresholds in use: Gu et al.'s and the paper's
NEW_FIELDS = ("optimizer", "weight_decay", "beta2", "use_residual")  # that older tables lack
TYPES = ["softmax", "sigmoid_norm", "sigmoid_unnorm", *(name for name in ATTENTION if name not in PAPER)]


@dataclass(frozen=True)
class Scene:
    """A column of the benchmark.

    Args:
        title: How tables and figures call it.
        fields: What its runs have in common, their task among it.
        sink: Regular expression of the columns of heads that say how much goes to the anchor, or to one key.
        anchor: That of the anchor's own weight, where there is one. The sink score may be its share of the row's sum.
    """

    title: str
    fields: Mapping[str, Any]
    sink: str
    anchor: str | None = None

    @property
    def task(self) -> type[Task]:
        return task_class(self.fields["task"])


_BARE = {"task": "trigger", "use_mlp": False, "use_layernorm": False}
_USUAL = {"task": "trigger", "use_bos": True, "use_residual": True}
_MAIN = {"task": "induction", "aux_loss_weight": 0.2, "shift_query_token": True, "positional_type": "add"}
_BOS, _SHARE, _LARGEST = r"\d+_\d+_abs_attn_bos", r"\d+_\d+_rel_attn_bos_global", r"\d+_\d+_rel_attn_max"
SCENES = {
    "trigger": Scene("trigger", _BARE | _USUAL, _BOS, _BOS),
    "trigger_no_skip": Scene("trigger, no skip", _BARE | {"use_bos": True, "use_residual": False}, _BOS, _BOS),
    "trigger_no_bos": Scene("trigger, no BOS", _BARE | {"use_bos": False, "use_residual": True}, _BOS),
    "trigger_neither": Scene("trigger, neither", _BARE | {"use_bos": False, "use_residual": False}, _BOS),
    "trigger_norm": Scene("trigger, LayerNorm", _USUAL | {"use_mlp": False, "use_layernorm": True}, _BOS, _BOS),
    "trigger_mlp": Scene("trigger, MLP", _USUAL | {"use_mlp": True, "use_layernorm": False}, _BOS, _BOS),
    "trigger_both": Scene("trigger, MLP and LayerNorm", _USUAL | {"use_mlp": True, "use_layernorm": True}, _BOS, _BOS),
    "backcopy": Scene("backcopy", {"task": "backcopy"}, _SHARE, _BOS),
    "induction": Scene("induction", _MAIN, *(of.replace(r"\d+", "1", 1) for of in (_SHARE, _BOS))),
    "classification": Scene(
        "classification 1 × 1", {"task": "classification", "num_layers": 1, "num_heads": 1}, _LARGEST
    ),
    "classification_2x4": Scene(
        "classification 2 × 4", {"task": "classification", "num_layers": 2, "num_heads": 4}, _LARGEST
    ),
}
ADAMW = {"optimizer": "adamw", "weight_decay": 0.01, "beta2": 0.999}
OPTIMIZERS = {  # how tables and figures call them
    "AdamW": ADAMW,
    "AdamW, β₂ 0.95": ADAMW | {"beta2": 0.95},
    "gradient descent": ADAMW | {"optimizer": "sgd"},
    "momentum": ADAMW | {"optimizer": "momentum"},
    "signed": ADAMW | {"optimizer": "sign"},
    "Muon": ADAMW | {"optimizer": "muon"},
}


# Which runs


def with_fields(runs: pd.DataFrame) -> pd.DataFrame:
    """The settled runs, with the default of each field that was not there yet when they were logged."""
    runs = settled(runs)
    missing = {name: DEFAULTS[name] for name in NEW_FIELDS if name not in runs}
    runs = runs.assign(**missing)
    return runs.assign(**{name: runs[name].fillna(DEFAULTS[name]) for name in NEW_FIELDS if runs[name].isna().any()})


def in_scene(runs: pd.DataFrame, name: str, **fields: Any) -> pd.DataFrame:
    """The runs of a scene, under AdamW unless `fields` say otherwise. Of the paper's functions those of TYPES alone.

    Of a table of `with_fields`, here and in `of_scene`.
    """
    wanted = dict(SCENES[name].fields) | (fields or ADAMW)
    if any(field not in runs for field in wanted):
        return runs[:0]
    others = set(PAPER) - set(TYPES)
    return alike(among(runs[~runs["attention_type"].isin(others)], **wanted), "lr")


def of_scene(runs: pd.DataFrame, name: str, **fields: Any) -> pd.DataFrame:
    """Those runs of a scene (see `in_scene`) that ended, each function at its best rate."""
    chosen = in_scene(runs, name, **fields)
    return at_best_rates(chosen) if len(chosen) else chosen


# Measures


def heads_of(runs: pd.DataFrame, pattern: str) -> np.ndarray:
    """The values (runs, heads) of columns that match, NaN where a run has no such head."""
    return runs[columns_like(runs, pattern)].to_numpy(dtype=float)


def over_heads(runs: pd.DataFrame, pattern: str) -> np.ndarray:
    """Each run's mean over the columns that match, NaN where it has none: (runs,)."""
    if not has_columns(runs, pattern):
        return np.full(len(runs), np.nan)
    return runs[columns_like(runs, pattern)].astype(float).mean(axis=1).to_numpy()


def profile(heads: np.ndarray, thresholds: np.ndarray = THRESHOLDS) -> np.ndarray:
    """The sink profile F(τ): the share of each run's heads whose score exceeds τ, for scores (runs, heads), NaN where a
    run has no such head, and thresholds (K,): (runs, K). It falls; a threshold's share of sinks is a point of it."""
    there = ~np.isnan(heads)
    above = (heads[..., None] > thresholds) & there[..., None]
    return above.sum(axis=1) / there.sum(axis=1, keepdims=True)


def area(heads: np.ndarray) -> np.ndarray:
    """The area under each run's sink profile from τ = 0 to 1, which is the mean over heads of the score cut to [0, 1]:
    (runs, heads) to (runs,)."""
    return np.nanmean(heads.clip(0, 1), axis=1)


def over_seeds(values: np.ndarray, seeds: np.ndarray, bounds: tuple[float, float]) -> tuple[float, float, float]:
    """(mean, low, high) of `mean_interval`; low and high NaN for a single seed, of whose spread nothing is known."""
    mean, low, high = mean_interval(values, seeds, bounds=bounds)
    return (mean, low, high) if len(np.unique(seeds)) > 1 else (mean, np.nan, np.nan)


MEASURES = {  # columns of heads or layers, and how the table calls their mean
    "entropy": r"\d+_\d+_attn_entropy",
    "row sum": r"\d+_\d+_row_sum",
    "value drain": r"\d+_\d+_value_drain",
    "residual peak": r"\d+_residual_peak",
    "max / median": r"\d+_residual_max_median",
}


def summary(runs: pd.DataFrame, scene: Scene) -> pd.DataFrame:
    """A row for each attention type: runs, solved, lr, and (mean, low, high) over seeds of the sink profile's area, of
    MEASURES and of the milliseconds that a training step took. Of the runs of `of_scene`; measures of finished runs."""
    done, measured = runs[runs["state"] == "finished"], {}
    if len(done):
        measured["area"] = area(heads_of(done, scene.sink))
        measured |= {label: over_heads(done, pattern) for label, pattern in MEASURES.items()}
        if {"seconds", "step"} <= set(done.columns):
            measured["ms a step"] = (1e3 * done["seconds"] / done["step"]).to_numpy(dtype=float)
    solved = solving(done, scene.task.solved)
    rows = {}
    for name in runs["attention_type"].unique():
        lrs = runs["lr"][runs["attention_type"] == name]
        own = (done["attention_type"] == name).to_numpy()
        row = {"runs": len(lrs), "solved": int(solved[own].sum()), "lr": lrs.iloc[0]}
        for label, values in measured.items():
            has = own & ~np.isnan(values)  # runs of older code lack some
            if has.any():
                bounds = (0, 1) if label in ("area", "entropy") else (0, np.inf)
                row[label] = over_seeds(values[has], done["seed"].to_numpy()[has], bounds)
        rows[name] = row
    order = [name for name in ATTENTION if name in rows] + [name for name in rows if name not in ATTENTION]
    return pd.DataFrame.from_dict(rows, orient="index").reindex(order)


def summaries(runs: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The summary of each scene that the table has runs of."""
    runs = with_fields(runs)
    found = {name: of_scene(runs, name) for name in SCENES}
    return {name: summary(group, SCENES[name]) for name, group in found.items() if len(group)}


def by_optimizer(runs: pd.DataFrame, name: str) -> dict[str, pd.DataFrame]:
    """The summary of a scene under each of OPTIMIZERS that it has runs of, of the functions that were trained under
    others than AdamW; empty where none was."""
    runs = with_fields(runs)
    chosen = {label: of_scene(runs, name, **fields) for label, fields in OPTIMIZERS.items()}
    others = {kind for label, group in chosen.items() if label != "AdamW" for kind in group["attention_type"]}
    chosen = {label: group[group["attention_type"].isin(others)] for label, group in chosen.items()}
    return {label: summary(group, SCENES[name]) for label, group in chosen.items() if others and len(group)}
