"""How long runs will take, by the times that a log has of such runs, and a few steps of those that it has none of."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from src.config import FIELDS, ConfigError, RunConfig
from src.runs import load_runs
from src.training.loop import estimate_seconds
from src.training.stacks import shape_of

SAMPLES = 4  # stacks of which a few steps are trained
SETTLED = ("finished", "diverged")  # such runs are not trained again


def logged(path: Path | str) -> pd.DataFrame:
    """The runs of a log, if there are any: nothing is made. Raises LogError for a file that is no log."""
    there = os.path.exists(path)  # which no path is too long for
    runs = load_runs(path) if there else pd.DataFrame()
    return runs if len(runs) else pd.DataFrame(columns=[*FIELDS, "hash", "state", "seconds", "device"])


def seconds_by_shape(runs: pd.DataFrame, device: str) -> dict[tuple, float]:
    """The mean seconds of the finished runs of each shape that were trained on a device of this name."""
    runs = runs[(runs["state"] == "finished") & (runs["device"] == device) & runs["seconds"].notna()]
    seconds: dict[tuple, list[float]] = {}
    for row in runs.to_dict("records"):
        try:
            config = RunConfig.from_dict({k: v for k, v in row.items() if k in FIELDS and not pd.isna(v)})
        except ConfigError:  # of code that has changed since
            continue
        seconds.setdefault(shape_of(config), []).append(row["seconds"])
    return {shape: float(np.mean(times)) for shape, times in seconds.items()}


def seconds_of(stacks: Sequence[Sequence[RunConfig]], known: Mapping[tuple, float], device: str) -> list[float]:
    """How long each stack takes: by the seconds that are known of a run of its shape, else as a few stacks of unknown
    shapes take in the mean."""
    unknown = [stack for stack in stacks if shape_of(stack[0]) not in known]
    sample = [unknown[i] for i in np.unique(np.linspace(0, len(unknown) - 1, SAMPLES, dtype=int))] if unknown else []
    guess = float(np.mean([estimate_seconds(stack, device) / len(stack) for stack in sample])) if sample else 0.0
    return [len(stack) * known.get(shape_of(stack[0]), guess) for stack in stacks]
