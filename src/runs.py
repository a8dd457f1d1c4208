"""The run log: write it, resume from it, read it back.

A log is one SQLite file with a row for each config, and the results of each epoch as they come; several
processes may write to it at once. Beside it lies an empty lock file: who trains a run holds a lock on the
run's byte of that file, which the system releases when the process ends, however it ends.

    uv run python -m src.runs export logs/runs.db results/table.parquet
"""

import contextlib
import fcntl
import glob
import json
import os
import platform
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from src import cpu
from src.config import FIELDS, ConfigError, RunConfig

if TYPE_CHECKING:
    import pandas as pd  # slow to import: for the readers of a log, not for the workers that write it

ROOT = Path(__file__).parents[1]
DEFAULT_LOG = ROOT / "logs" / "runs.db"
COMMITTED = ROOT / "results" / "runs.parquet"
HISTORY = "history/"  # what the names of columns with one value for each epoch begin with

APPLICATION_ID = 0x504F4C41  # in the file's header: tells our databases from others
SCHEMA_VERSION = 1
SCHEMA = """
CREATE TABLE runs (
    hash TEXT PRIMARY KEY,
    config TEXT NOT NULL,   -- JSON, every field of RunConfig
    state TEXT NOT NULL,    -- running, finished, diverged, interrupted or failed
    summary TEXT NOT NULL,  -- JSON
    error TEXT,
    started REAL NOT NULL,  -- seconds since 1970
    seconds REAL,
    process TEXT NOT NULL,  -- machine:pid
    device TEXT NOT NULL,
    torch TEXT NOT NULL,
    code TEXT               -- git commit
);
CREATE TABLE history (
    hash TEXT NOT NULL,
    epoch INTEGER NOT NULL,
    results TEXT NOT NULL,  -- JSON
    PRIMARY KEY (hash, epoch)
) WITHOUT ROWID;
CREATE TABLE schema (fields TEXT NOT NULL);  -- JSON, the names of RunConfig's fields that hashes depend on
"""


class LogError(Exception):
    """The log cannot be read or written; one sentence that says why and what to do."""

    def _render_traceback_(self) -> list[str]:
        """What notebooks show of it: the sentence."""
        return [f"error: {self}"]


class RunLog:
    """A run log, made if missing. Raises LogError for a file that is no run log or cannot be opened."""

    def __init__(self, path: Path | str = DEFAULT_LOG):
        self.path = Path(path)
        self._lock_file = None
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.db = sqlite3.connect(self.path, timeout=60, isolation_level=None)
            self._prepare()
        except (sqlite3.Error, OSError) as error:
            raise LogError(f"cannot open the run log {self.path} ({error}); name another file") from error

    def _prepare(self) -> None:
        (application,) = self.db.execute("PRAGMA application_id").fetchone()
        (tables,) = self.db.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if application != APPLICATION_ID and tables:
            raise LogError(f"{self.path} is a database of something else; name another file")
        self.db.execute("PRAGMA journal_mode = WAL")
        self.db.execute("PRAGMA synchronous = NORMAL")  # safe against a killed process
        with self._transaction():
            (version,) = self.db.execute("PRAGMA user_version").fetchone()
            if version > SCHEMA_VERSION:
                raise LogError(f"{self.path} was written by newer code; update this checkout or choose another --log")
            if version == 0:
                for statement in SCHEMA.split(";\n"):
                    self.db.execute(statement)
                self.db.execute("INSERT INTO schema VALUES (?)", [json.dumps(list(FIELDS))])
                self.db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                self.db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
            # Who is settled is asked twice a second: an index answers without reading configs and summaries.
            self.db.execute("CREATE INDEX IF NOT EXISTS by_state ON runs (state, started, hash)")
            self._rehash()

    def _rehash(self) -> None:
        """Bring rows logged under other fields of RunConfig to today's hashes: a field that they lack has its
        default. Rows that today's RunConfig does not understand stay as they are."""
        (fields,) = self.db.execute("SELECT fields FROM schema").fetchone()
        if json.loads(fields) == list(FIELDS):
            return
        for old, text in self.db.execute("SELECT hash, config FROM runs").fetchall():
            try:
                config = RunConfig.from_dict(json.loads(text))
            except ConfigError:
                continue
            if self.db.execute("SELECT 1 FROM runs WHERE hash = ?", [config.hash]).fetchone():
                continue
            self.db.execute(
                "UPDATE runs SET hash = ?, config = ? WHERE hash = ?",
                [config.hash, json.dumps(config.to_dict()), old],
            )
            self.db.execute("UPDATE history SET hash = ? WHERE hash = ?", [config.hash, old])
        self.db.execute("UPDATE schema SET fields = ?", [json.dumps(list(FIELDS))])

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise LogError(f"cannot use the run log {self.path} ({error}); what it holds is kept") from error

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._explained():
            self.db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self.db.execute("COMMIT")
            except BaseException:
                if self.db.in_transaction:
                    self.db.execute("ROLLBACK")
                raise

    # Who trains what

    def claim(self, config: RunConfig, wait: bool = False) -> bool:
        """Whether this process may train the run now: it then holds the run's lock until `release`.

        False while another process holds it; with `wait`, waits for that one to end.
        """
        if self._lock_file is None:
            with self._explained():
                self._lock_file = open(f"{self.path}-lock", "a")  # noqa: SIM115 (held until the process ends)
        try:
            fcntl.lockf(self._lock_file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB), 1, _byte(config))
        except BlockingIOError:
            return False
        return True

    def release(self, config: RunConfig) -> None:
        fcntl.lockf(self._lock_file, fcntl.LOCK_UN, 1, _byte(config))

    def states(self, settled_since: float | None = None, of: RunConfig | None = None) -> dict[str, str]:
        """Hash and state of every run; or of those that need no training now: finished, diverged, or failed
        in an attempt that began at `settled_since` or later; or of one run."""
        query, values = "SELECT hash, state FROM runs WHERE TRUE", []
        if settled_since is not None:
            query += " AND state IN ('finished', 'diverged', 'failed') AND (state != 'failed' OR started >= ?)"
            values.append(settled_since)
        if of is not None:
            query += " AND hash = ?"
            values.append(of.hash)
        with self._explained():
            return dict(self.db.execute(query, values).fetchall())

    def running(self, pid: int) -> list[RunConfig]:
        """The runs that process `pid` of this machine is at, or was when it died."""
        with self._explained():
            rows = self.db.execute(
                "SELECT config FROM runs WHERE state = 'running' AND process = ?",
                [f"{platform.node()}:{pid}"],
            ).fetchall()
        return [RunConfig.from_dict(json.loads(config)) for (config,) in rows]

    def epochs(self, since: float) -> dict[str, int]:
        """The last epoch logged of each run that began at `since` or later and has not ended."""
        with self._explained():
            return dict(
                self.db.execute(
                    "SELECT hash, max(epoch) FROM history JOIN runs USING (hash) "
                    "WHERE state = 'running' AND started >= ? GROUP BY hash",
                    [since],
                ).fetchall()
            )

    # What a run writes

    def start(self, config: RunConfig, device: str) -> None:
        """A fresh row for a claimed run, in place of what an attempt that did not end has left."""
        with self._transaction():
            self.db.execute("DELETE FROM history WHERE hash = ?", [config.hash])
            self.db.execute(
                "INSERT OR REPLACE INTO runs VALUES (?, ?, 'running', '{}', NULL, ?, NULL, ?, ?, ?, ?)",
                [config.hash, json.dumps(config.to_dict()), time.time(), f"{platform.node()}:{os.getpid()}"]
                + [device_name(device), torch.__version__, git_commit()],
            )

    def add_epoch(self, config: RunConfig, epoch: int, results: dict[str, float]) -> None:
        with self._transaction():
            self.db.execute("INSERT INTO history VALUES (?, ?, ?)", [config.hash, epoch, json.dumps(results)])

    def end(
        self,
        config: RunConfig,
        state: str,
        summary: dict[str, float],
        seconds: float | None = None,
        error: str | None = None,
    ) -> None:
        with self._transaction():
            self.db.execute(
                "UPDATE runs SET state = ?, summary = ?, seconds = ?, error = ? WHERE hash = ?",
                [state, json.dumps(summary), seconds, error, config.hash],
            )

    # What a run has written

    def row(self, config: RunConfig) -> dict[str, Any]:
        """The run's state, summary (dict) and history (list of dicts, one for each epoch)."""
        with self._explained():
            state, summary = self.db.execute("SELECT state, summary FROM runs WHERE hash = ?", [config.hash]).fetchone()
            epochs = self.db.execute("SELECT results FROM history WHERE hash = ? ORDER BY epoch", [config.hash])
            history = [json.loads(text) for (text,) in epochs]
        return {"state": state, "summary": json.loads(summary), "history": history}

    def records(self, history: bool = False) -> Iterator[dict[str, Any]]:
        """One flat dict for each run: config, summary and the row's other columns."""
        columns = ["hash", "state", "error", "started", "seconds", "process", "device", "torch", "code"]
        with self._explained():
            epochs = self._histories() if history else {}
            for config, summary, *values in self.db.execute(
                f"SELECT config, summary, {', '.join(columns)} FROM runs ORDER BY started, hash"
            ):
                row = dict(zip(columns, values, strict=True))
                yield row | json.loads(config) | json.loads(summary) | epochs.get(row["hash"], {})

    def _histories(self) -> dict[str, dict[str, list[float]]]:
        epochs: dict[str, list[dict[str, float]]] = {}
        for hash, text in self.db.execute("SELECT hash, results FROM history ORDER BY hash, epoch"):
            epochs.setdefault(hash, []).append(json.loads(text))
        return {hash: as_columns(rows) for hash, rows in epochs.items()}


def as_columns(epochs: list[dict[str, float]]) -> dict[str, list[float]]:
    """Results of each epoch as columns `history/NAME`, a list over epochs each (NaN where not measured)."""
    names = dict.fromkeys(name for epoch in epochs for name in epoch)
    return {HISTORY + name: [epoch.get(name, float("nan")) for epoch in epochs] for name in names}


def _byte(config: RunConfig) -> int:
    return int(config.hash[:15], 16)  # file offsets have 63 bits


@cache
def git_commit() -> str | None:
    """The commit of this checkout, with a + if tracked files differ from it."""
    git = ["git", "-C", str(ROOT), "describe", "--always", "--dirty=+", "--abbrev=12", "--exclude=*"]
    try:
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def device_name(device: str) -> str:
    """The model of the GPU, or of the CPU where the system tells it."""
    return torch.cuda.get_device_name() if device == "cuda" else cpu.model_name()


# Reading back


def load_runs(source: Path | str = DEFAULT_LOG, history: bool = False) -> "pd.DataFrame":
    """One table, a row for each run, from wherever runs are kept.

    source: a run log (a .db file) or a pattern of several, like `logs/shard-*.db`, of which the table has each
    run once; a Parquet table made by `export`; or `entity/project/sweep_id` on Weights & Biases, whoever's code
    logged it. Columns: the fields of RunConfig, the metrics of the run's summary under their logged names, hash (on
    W&B the run's id), state, seconds (of a run in a stack its share), and what else the source knows. With `history`
    also columns `history/NAME`, each cell a list with one value for each epoch.

    Raises LogError if there is no such source or it cannot be read.
    """
    import pandas as pd

    path = Path(source)
    if set(str(source)) & set("*?["):
        return _load_logs(str(source), history)
    if path.suffix == ".parquet":
        return _load_parquet(path, history)
    if path.exists() or path.suffix == ".db":
        require_log(path)
        return pd.DataFrame.from_records(list(RunLog(path).records(history)))
    if str(source).count("/") == 2 and not path.is_absolute():
        from src.wandb_runs import records  # W&B is imported only where it is used

        return pd.DataFrame.from_records(list(records(str(source), history)))
    raise LogError(
        f"{source} is no source of runs: give a run log (.db) or a pattern of several, a table (.parquet), or "
        "entity/project/sweep_id of a W&B sweep"
    )


def _load_logs(pattern: str, history: bool) -> "pd.DataFrame":
    """The runs of all logs whose paths match; of a run that several have, the one that got furthest."""
    import pandas as pd

    paths = sorted(glob.glob(pattern))
    if not paths:
        raise LogError(f"no run log matches {pattern}; train.py makes logs, or name another source")
    best: dict[str, dict[str, Any]] = {}
    for path in paths:
        for row in RunLog(path).records(history):
            if row["hash"] not in best or _rank(row) < _rank(best[row["hash"]]):
                best[row["hash"]] = row
    return pd.DataFrame.from_records(sorted(best.values(), key=lambda row: (row["started"], row["hash"])))


def _rank(row: dict[str, Any]) -> int:
    return ("finished", "diverged", "failed", "interrupted", "running").index(row["state"])


def require_log(path: Path) -> None:
    if not path.is_file():
        raise LogError(f"there is no run log {path}; train.py makes one, or name another source")


def _load_parquet(path: Path, history: bool) -> "pd.DataFrame":
    import pandas as pd
    import pyarrow.parquet as pq

    if not path.is_file():
        raise LogError(f"there is no table {path}; `python -m src.runs export` makes one, or name another source")
    try:
        names = pq.read_schema(path).names
        return pd.read_parquet(path, columns=[n for n in names if history or not n.startswith(HISTORY)])
    except (OSError, ValueError) as error:
        raise LogError(f"cannot read the table {path}: {error}") from error


def export(source: Path | str, path: Path | str) -> int:
    """Write the runs of `source` with their histories to the Parquet table `path`; how many."""
    runs = load_runs(source, history=True)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".part")
    runs.to_parquet(unfinished, index=False, compression="zstd")
    os.replace(unfinished, path)  # a killed export leaves the old table whole
    return len(runs)


def main(arguments: Iterable[str] = tuple(sys.argv[1:])) -> int:
    match list(arguments):
        case ["export", source, path] if path.endswith(".parquet"):
            try:
                print(f"{export(source, path)} runs written to {path}")
            except (LogError, OSError) as error:
                print(f"error: {error}", file=sys.stderr)
                return 1
            return 0
    print("usage: python -m src.runs export SOURCE TABLE.parquet", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
