"""Bringing the runs of tables and other logs into a log, where they count as its own: none is trained again."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

from src.runs.columns import COUNTS, TEXTS
from src.runs.identity import config_of, identified, is_ours, run_of
from src.runs.log import RunLog
from src.runs.reader import HISTORY
from src.runs.table import load_runs

AT_ONCE = 200  # runs in a transaction: others may write between


def import_runs(sources: Iterable[Path | str], path: Path | str) -> Counter[str]:
    """Write the runs of the sources that have ended into the log `path`, each whole: its config, summary and histories,
    and what its row says of device, code and time. The log is made if missing, once the sources are read.

    Counts what became of them: written; there (the log has them, as far or further); busy (another process trains
    them now); not ended; and other code (whose config does not say all that decides a run). A killed import goes on
    where it was. Raises LogError as `load_runs` does.
    """
    counts: Counter[str] = Counter()
    wanted = []
    for row in load_runs(sources, history=True).astype(object).to_dict("records"):
        row = {name: value for name, value in row.items() if not is_missing(value)}
        ended = row.get("state") in ("finished", "diverged", "failed")
        if ended and (hash := hash_of(row)):
            wanted.append((hash, row))
        else:
            counts["other code" if ended else "not ended"] += 1
    log = RunLog(path)
    with tqdm(total=len(wanted), desc=f"into {log.path.name}", unit="run") as bar:
        for i in range(0, len(wanted), AT_ONCE):
            part = [(hash, columns_of(row), epochs_of(row)) for hash, row in wanted[i : i + AT_ONCE]]
            counts.update(log.add_runs(part))
            bar.update(len(part))
    return counts


def is_missing(value: Any) -> bool:
    return value is None or value != value


def hash_of(row: Mapping[str, Any]) -> str | None:
    """The run's hash, None where it is not certain. One that this code cannot train keeps the hash that its own code
    gave it."""
    if run := identified(row):
        return run.hash
    return row["hash"] if is_ours(row.get("hash")) and not run_of(row) else None


def columns_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """The row as the log's table of runs has it."""
    run = identified(row)
    config = run.to_dict() if run else config_of(row)
    apart = {*config, *TEXTS, "started", "seconds"}
    summary = {k: v for k, v in row.items() if k not in apart and not k.startswith(HISTORY)}
    summary |= {name: int(summary[name]) for name in COUNTS if name in summary}
    return {
        "config": json.dumps(config),
        "state": row["state"],
        "summary": json.dumps(summary),
        "error": row.get("error"),
        "started": row.get("started", 0.0),
        "seconds": row.get("seconds"),
        "process": row.get("process", "unknown"),
        "device": row.get("device", "unknown"),
        "torch": row.get("torch", "unknown"),
        "code": row.get("code"),
    }


def epochs_of(row: Mapping[str, Any]) -> list[dict[str, float]]:
    """The results of each epoch, less what is measured in later ones but not before training."""
    columns = {name.removeprefix(HISTORY): values for name, values in row.items() if name.startswith(HISTORY)}
    late = {
        name
        for name, values in columns.items()
        if values and is_missing(values[0]) and not all(map(is_missing, values))
    }
    return [
        {name: values[i] for name, values in columns.items() if i < len(values) and (i or name not in late)}
        for i in range(max(map(len, columns.values()), default=0))
    ]
