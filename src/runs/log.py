"""The run log: write it, resume from it, read it back.

A log is one SQLite file with a row for each config, and the results of each epoch as they come; several
processes may write to it at once. Beside it lies an empty lock file: who trains a run holds a lock on the
run's byte of that file, which the system releases when the process ends, however it ends.

    uv run python -m src.runs export logs/runs.db results/table.parquet
"""

import contextlib
import fcntl
import json
import os
import platform
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from src.config import FIELDS, RunConfig
from src.errors import ConfigError, LogError
from src.runs.provenance import ROOT, device_name, git_commit

if TYPE_CHECKING:
    pass  # slow to import: for the readers of a log, not for the workers that write it

DEFAULT_LOG = ROOT / "logs" / "runs.db"
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
