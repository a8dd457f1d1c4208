"""Which rows of a table are one run: the same point trained twice, whoever logged it, under whatever name."""

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

import pandas as pd

from src.config import FIELDS, IN_EVERY_HASH, RunConfig
from src.errors import ConfigError
from src.runs.columns import NUMBERS, TEXTS, is_measured
from src.runs.reader import BETTER_FIRST


def config_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """What a row says of its run's config: fields of RunConfig, and of other code what is no result."""
    said = {name: value for name, value in row.items() if value is not None and value == value}
    return {k: v for k, v in said.items() if k in FIELDS or not (is_measured(k) or k in TEXTS or k in NUMBERS)}


def identified(row: Mapping[str, Any]) -> RunConfig | None:
    """The run of a row, where its config is certain: nothing of it is missing, unknown or wrong."""
    config = config_of(row)
    try:
        run = RunConfig.from_dict(config)
    except ConfigError:
        return None
    unsaid = {name for name in IN_EVERY_HASH if name not in config and getattr(run, name) is not None}
    # A table of a time when RunConfig had fewer fields: its hashes tell it from one that lacks columns.
    return run if not unsaid or row.get("hash") == hash_without(run, unsaid) else None


def hash_without(run: RunConfig, names: set[str]) -> str:
    """The hash that the run had when RunConfig lacked these fields."""
    values = {name: value for name, value in run.to_dict().items() if name in IN_EVERY_HASH and name not in names}
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def is_ours(hash: Any) -> bool:
    return isinstance(hash, str) and re.fullmatch("[0-9a-f]{16}", hash) is not None


def with_hashes(runs: pd.DataFrame) -> pd.DataFrame:
    """The table with today's hash of each run whose config is certain, in the place of another's name for it."""
    if not len(runs):
        return runs
    hashes = runs["hash"] if "hash" in runs else pd.Series(None, index=runs.index, dtype=object)
    complete = all(name in runs for name in IN_EVERY_HASH)
    doubtful = [i for i, hash in enumerate(hashes) if not (complete and is_ours(hash))]
    hashes = hashes.copy()
    for i, row in zip(doubtful, config_rows(runs.iloc[doubtful]), strict=True):
        if run := identified(row):
            hashes.iloc[i] = run.hash
    return runs.assign(hash=hashes)


def config_rows(runs: pd.DataFrame) -> list[dict[str, Any]]:
    names = [name for name in runs if name in FIELDS or name == "hash" or not is_measured(name)]
    return runs[names].astype(object).to_dict("records")


def once(runs: pd.DataFrame) -> pd.DataFrame:
    """Each run once: of several rows the one that got furthest, and of those the first."""
    rank = runs["state"].map(lambda state: BETTER_FIRST.index(state) if state in BETTER_FIRST else len(BETTER_FIRST))
    order = rank.sort_values(kind="stable").index
    kept = names_of(runs).loc[order].drop_duplicates().index
    return runs.loc[kept.sort_values()].reset_index(drop=True)


def names_of(runs: pd.DataFrame) -> pd.Series:
    """What a run is called, equal for rows of one run alone: its hash; of other code's runs their config, all of it,
    where it has a seed."""

    def name(row: dict[str, Any]) -> str:
        config = config_of(row)
        own = is_ours(row.get("hash")) or "seed" not in config
        return str(row.get("hash")) if own else json.dumps(config, sort_keys=True, default=str)

    return pd.Series([name(row) for row in config_rows(runs)], index=runs.index)
