"""Which rows of a table are one run: the same point trained twice, whoever logged it, under whatever name."""

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

import pandas as pd

from src.config import FIELDS, IN_EVERY_HASH, RunConfig
from src.errors import ConfigError
from src.runs.columns import NUMBERS, TEXTS, is_measured, plain_column
from src.runs.reader import BETTER_FIRST

# The fields that RunConfig lacked when hashes began, with their defaults.
LATER = {
    name: field.default for name, field in FIELDS.items() if name not in IN_EVERY_HASH and field.default is not None
}


def config_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """What a row says of its run's config: fields of RunConfig, and of other code what is no result."""
    said = {name: value for name, value in row.items() if value is not None and value == value}
    return {k: v for k, v in said.items() if k in FIELDS or not (is_measured(k) or k in TEXTS or k in NUMBERS)}


def run_of(row: Mapping[str, Any]) -> RunConfig | None:
    """The run of a row's config, with the default of what it leaves out; None for a config of other code."""
    try:
        return RunConfig.from_dict(config_of(row))
    except ConfigError:
        return None


def is_certain(run: RunConfig, row: Mapping[str, Any]) -> bool:
    """Whether the row is of this run: its hash says so; or, of one that has another's name, it leaves out nothing that
    every hash has."""
    config = config_of(row)
    unsaid = {name for name in IN_EVERY_HASH if name not in config and getattr(run, name) is not None}
    if is_ours(row.get("hash")):
        return row["hash"] in (run.hash, hash_without(run, unsaid))
    return not unsaid


def identified(row: Mapping[str, Any]) -> RunConfig | None:
    """The run of a row, where its config is certain: nothing of it is missing, unknown or wrong."""
    run = run_of(row)
    return run if run and is_certain(run, row) else None


def hash_without(run: RunConfig, names: set[str]) -> str:
    """The hash that the run had when RunConfig lacked these fields."""
    given = {name: value for name, value in run.to_dict().items() if name not in names}
    counted = {k: v for k, v in given.items() if k in IN_EVERY_HASH or v != FIELDS[k].default}
    return hashlib.sha256(json.dumps(counted, sort_keys=True).encode()).hexdigest()[:16]


def is_ours(hash: Any) -> bool:
    return isinstance(hash, str) and re.fullmatch("[0-9a-f]{16}", hash) is not None


def with_defaults(runs: pd.DataFrame) -> pd.DataFrame:
    """The table with the default of each field that is newer than a row; a row whose hash says that it was something
    else is left as it is."""
    missing = pd.DataFrame({name: runs[name].isna() if name in runs else True for name in LATER}, index=runs.index)
    doubtful = missing.any(axis=1)
    for i, row in zip(runs.index[doubtful], config_rows(runs[doubtful]), strict=True):
        if is_ours(row.get("hash")) and (run := run_of(row)) and not is_certain(run, row):
            missing.loc[i] = False
    given = runs.reindex(columns=LATER).astype(object).where(~missing, pd.Series(LATER), axis=1)
    return runs.assign(**{name: plain_column(name, given[name]) for name in LATER})


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
