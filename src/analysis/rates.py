"""Each function at its best learning rate: chosen by its loss on the task alone."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from src.analysis.selection import ENDED, require_columns
from src.config import RunConfig
from src.errors import require


def at_best_rates(runs: pd.DataFrame) -> pd.DataFrame:
    """Of the runs that ended and differ in attention type, lr and seed alone: those at the learning rate with the
    lowest mean eval/loss, for each attention type.

    Means are over the seeds that all of its rates have, where there are such; a run that diverged has an infinite loss.
    Of rates that all diverged, the smallest.
    """
    require_columns(runs, columns := ["attention_type", "lr", "seed", "eval/loss"])
    best = {name: best_rate(group) for name, group in runs[columns].groupby("attention_type", sort=False)}
    return runs[runs["lr"] == runs["attention_type"].map(best)]


def best_rate(runs: pd.DataFrame) -> float:
    """The learning rate with the lowest mean loss of runs of one function; see `at_best_rates`."""
    losses = runs["eval/loss"].astype(float).fillna(np.inf).to_numpy()
    lrs, column = np.unique(runs["lr"], return_inverse=True)
    seeds, row = np.unique(runs["seed"], return_inverse=True)
    totals, counts = np.zeros((2, len(seeds), len(lrs)))
    np.add.at(totals, (row, column), losses)
    np.add.at(counts, (row, column), 1)
    shared = (counts > 0).all(axis=1)
    if shared.any():
        totals, counts = totals[shared], counts[shared]
    there = counts > 0
    means = np.divide(totals, counts, out=np.zeros_like(totals), where=there).sum(axis=0) / there.sum(axis=0)
    return float(lrs[np.argmin(means)])


def points_at_best_rates(points: Sequence[RunConfig], runs: pd.DataFrame) -> list[RunConfig]:
    """Of points that differ in lr and seed alone, those at the rate that is best by the table of runs.

    ConfigError unless the table has a run that ended at each rate of each such group.
    """
    groups: dict[tuple, list[RunConfig]] = {}
    for config in points:
        rest = tuple(value for name, value in config.to_dict().items() if name not in ("lr", "seed"))
        groups.setdefault(rest, []).append(config)
    ended = runs[runs["state"].isin(ENDED)].set_index("hash") if len(runs) else pd.DataFrame()
    chosen = []
    for group in groups.values():
        known = ended.loc[[config.hash for config in group if config.hash in ended.index]]
        missing = {config.lr for config in group} - set(known["lr"] if len(known) else ())
        require(
            not missing,
            f"best_lr needs a run of {group[0].task} with {group[0].attention_type} at lr={min(missing, default=0):g}, "
            "which the log lacks; train the sweep for one seed first, with --seed=0",
        )
        best = best_rate(known)
        chosen += [config for config in group if config.lr == best]
    return chosen
