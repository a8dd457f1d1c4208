"""The run log, as those use it who write it and resume from it.

A log is one SQLite file with a row for each config, and the results of each epoch as they come; several
processes may write to it at once. Beside it lies an empty lock file (`locks.RunLocks`): who trains a run holds a lock
on the run's byte of that file.

While a log is in use, its latest rows are in a second file, FILE-wal; each run's end brings the main file up to date.
The last process to close the log turns it into a file that is complete by itself, and says so in its header: from
this a reader (`reader.read`) knows a copy that lacks its -wal.
"""

import contextlib
import json
import os
import platform
import sqlite3
import time
import weakref
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from src.config import IN_EVERY_HASH, RunConfig
from src.errors import ConfigError, LogError
from src.runs import places
from src.runs.locks import RunLocks
from src.runs.provenance import ROOT, device_name, git_commit
from src.runs.reader import APPLICATION_ID, BETTER_FIRST, SCHEMA_VERSION, records

DEFAULT_LOG = ROOT / "logs" / "runs.db"

PATIENCE = 60  # seconds to wait for another process that writes
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
CREATE TABLE schema (fields TEXT NOT NULL);  -- JSON, the fields that every hash depends on
"""


class RunLog:
    """A run log, made if missing. Raises LogError for a file that is no run log or cannot be opened, and for a folder
    where processes cannot be kept apart."""

    def __init__(self, path: Path | str = DEFAULT_LOG):
        self.path = Path(path)
        try:
            self._file = self.path.resolve()  # what SQLite and we keep beside it lies beside the file, not its link
            self._file.parent.mkdir(parents=True, exist_ok=True)
            journal = places.journal_mode(self._file.parent)
            self._refuse_hard_links()
            self.locks = RunLocks(Path(f"{self._file}-lock"))
            self.db = sqlite3.connect(self._file, timeout=PATIENCE, isolation_level=None)
            with contextlib.ExitStack() as unless_ready:
                unless_ready.callback(self.db.close)
                self._prepare(journal)
                unless_ready.pop_all()
        except (sqlite3.Error, OSError, RuntimeError) as error:  # RuntimeError: links in a circle
            raise LogError(f"cannot open the run log {self.path} ({error}); name another file") from error
        weakref.finalize(self, leave, self.db, self._file, self._identity, os.getpid())

    def _refuse_hard_links(self) -> None:
        if self._file.is_file() and os.stat(self._file).st_nlink > 1:
            raise LogError(
                f"the run log {self.path} has another name, a hard link, under which others would not see what is "
                "written here; remove one of the names, or make it a symbolic link"
            )

    def _prepare(self, journal: str) -> None:
        (application,) = self.db.execute("PRAGMA application_id").fetchone()
        (tables,) = self.db.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if application != APPLICATION_ID and tables:
            raise LogError(f"{self.path} is a database of something else; name another file")
        self._identity = places.identity(self._file)
        self._set_journal(journal)
        # Safe against a killed process, without waiting for the disk at each commit.
        self.db.execute("PRAGMA synchronous = NORMAL")
        with self._transaction():
            (version,) = self.db.execute("PRAGMA user_version").fetchone()
            if version > SCHEMA_VERSION:
                raise LogError(f"{self.path} was written by newer code; update this checkout or choose another --log")
            if version == 0:
                for statement in SCHEMA.split(";\n"):
                    self.db.execute(statement)
                self.db.execute("INSERT INTO schema VALUES (?)", [json.dumps(IN_EVERY_HASH)])
                self.db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                self.db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
            # Who is settled is asked twice a second: an index answers without reading configs and summaries.
            self.db.execute("CREATE INDEX IF NOT EXISTS by_state ON runs (state, started, hash)")
            self._adopt()

    def _set_journal(self, mode: str) -> None:
        """Others who open the log at the same moment may be in the way: then again."""
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                self.db.execute(f"PRAGMA journal_mode = {mode}").fetchone()
                return
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() > deadline:
                    raise
                time.sleep(0.05)

    def _adopt(self) -> None:
        """Bring rows of a time when hashes had other fields to today's: a field that they lack has its default. Rows
        that today's RunConfig does not understand stay as they are. LogError while another process trains."""
        (fields,) = self.db.execute("SELECT fields FROM schema").fetchone()
        if json.loads(fields) == list(IN_EVERY_HASH):
            return
        if not self.locks.take_all():
            raise LogError(f"{self.path} is of older code, which is training into it now; wait until it has ended")
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
        self.db.execute("UPDATE schema SET fields = ?", [json.dumps(IN_EVERY_HASH)])
        self.locks.free_all()

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
        self._check_place()

    def _check_place(self) -> None:
        """LogError if the log's path leads to another file by now, or to none."""
        if places.identity(self._file) == self._identity:
            return
        with contextlib.suppress(sqlite3.Error):  # into the file that was moved: then it has all that was logged
            self.db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        raise LogError(
            f"the run log {self.path} was moved, deleted or replaced while it was in use; a moved one has all that was "
            "logged: put it back, and start again"
        )

    # Who trains what

    def claim(self, config: RunConfig, wait: bool = False) -> bool:
        """Whether this process may train the run now: it then holds the run's lock until `release`.

        False while another process holds it; with `wait`, waits for that one to end.
        """
        with self._explained():
            while self.locks.take(config.hash, wait):
                if not self._has_other_trainer(config):
                    return True
                self.locks.free(config.hash)
                if not wait:
                    return False
                time.sleep(0.5)
        return False

    def _has_other_trainer(self, config: RunConfig) -> bool:
        """Whether a living process of this machine has begun the run before the lock file was made: its lock was in
        one that was removed."""
        began = "SELECT process FROM runs WHERE hash = ? AND state = 'running' AND started < ?"
        for (process,) in self.db.execute(began, [config.hash, self.locks.made()]).fetchall():
            machine, _, pid = process.rpartition(":")
            if machine == platform.node() and int(pid) != os.getpid() and is_alive(int(pid)):
                return True
        return False

    def release(self, config: RunConfig) -> None:
        self.locks.free(config.hash)

    def attempts(self) -> int:
        """The number of the last attempt at any run: each start has the next one. Unlike time, it never goes back."""
        with self._explained():
            (number,) = self.db.execute("SELECT coalesce(max(rowid), 0) FROM runs").fetchone()
        return number

    def states(self, settled_since: float | None = None, of: RunConfig | None = None) -> dict[str, str]:
        """Hash and state of every run; or of those that need no training now: finished, diverged, or failed
        in an attempt after number `settled_since` (see `attempts`); or of one run."""
        query, values = "SELECT hash, state FROM runs WHERE TRUE", []
        if settled_since is not None:
            query += " AND state IN ('finished', 'diverged', 'failed') AND (state != 'failed' OR rowid > ?)"
            values.append(settled_since)
        if of is not None:
            query += " AND hash = ?"
            values.append(of.hash)
        self._check_place()
        with self._explained():
            return dict(self.db.execute(query, values).fetchall())

    def running(self, pid: int) -> list[RunConfig]:
        """The runs that process `pid` of this machine is at, or was when it died."""
        with self._explained():
            rows = self.db.execute(
                "SELECT config FROM runs WHERE state = 'running' AND process = ?",
                [f"{platform.node()}:{pid}"],
            ).fetchall()
        return [config for (text,) in rows if (config := understood(text))]

    def epochs(self, since: float) -> dict[str, int]:
        """The last epoch logged of each run that is under way in an attempt after number `since`."""
        with self._explained():
            return dict(
                self.db.execute(
                    "SELECT hash, max(epoch) FROM history JOIN runs USING (hash) "
                    "WHERE state = 'running' AND runs.rowid > ? GROUP BY hash",
                    [since],
                ).fetchall()
            )

    # What a run writes

    def start(self, config: RunConfig, device: str) -> None:
        """A fresh row for a claimed run, in place of what an attempt that did not end has left."""
        with self._transaction():
            self.insert(
                config.hash,
                config=json.dumps(config.to_dict()),
                state="running",
                summary="{}",
                started=time.time(),
                process=this_process(),
                device=device_name(device),
                torch=torch.__version__,
                code=git_commit(),
            )

    def insert(self, hash: str, **columns: Any) -> None:
        """A row without epochs in place of what the log has of the run, within a transaction. Its rowid is the
        attempt's number."""
        self.db.execute("DELETE FROM history WHERE hash = ?", [hash])
        self.db.execute(
            f"INSERT OR REPLACE INTO runs (rowid, hash, {', '.join(columns)}) "
            f"VALUES ((SELECT coalesce(max(rowid), 0) + 1 FROM runs), ?{', ?' * len(columns)})",
            [hash, *columns.values()],
        )

    def add_epoch(self, config: RunConfig, epoch: int, results: dict[str, float]) -> None:
        """LogError if the run is another process's by now: where locks do not keep them apart."""
        with self._transaction():
            self.locks.keep()
            added = self.db.execute(
                "INSERT INTO history SELECT hash, ?, ? FROM runs WHERE hash = ? AND process = ?",
                [epoch, json.dumps(results), config.hash, this_process()],
            )
            self._require_row(added, config)

    def end(
        self,
        config: RunConfig,
        state: str,
        summary: dict[str, float],
        seconds: float | None = None,
        error: str | None = None,
    ) -> None:
        with self._transaction():
            ended = self.db.execute(
                "UPDATE runs SET state = ?, summary = ?, seconds = ?, error = ? WHERE hash = ?",
                [state, json.dumps(summary), seconds, error, config.hash],
            )
            self._require_row(ended, config)
        with self._explained():  # as far as others let us: what is copied without its -wal has this run
            self.db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()

    def add_runs(self, runs: Iterable[tuple[str, dict[str, Any], list[dict[str, float]]]]) -> Counter[str]:
        """Rows of runs that have ended elsewhere: hash, columns and the results of each epoch. Counts those written,
        those that are there as far or further, and those that another process is busy with; all in one transaction."""
        counts: Counter[str] = Counter()
        runs = list(runs)
        ours = {hash for hash, _, _ in runs if self.locks.take(hash)}
        try:
            with self._transaction():
                for hash, columns, epochs in runs:
                    outcome = "busy" if hash not in ours else self._add_run(hash, columns, epochs)
                    counts[outcome] += 1
        finally:
            for hash in ours:
                self.locks.free(hash)
        return counts

    def _add_run(self, hash: str, columns: dict[str, Any], epochs: list[dict[str, float]]) -> str:
        there = self.db.execute("SELECT state FROM runs WHERE hash = ?", [hash]).fetchone()
        if there and BETTER_FIRST.index(there[0]) <= BETTER_FIRST.index(columns["state"]):
            return "there"
        self.insert(hash, **columns)
        rows = [(hash, results.get("epoch", i), json.dumps(results)) for i, results in enumerate(epochs)]
        self.db.executemany("INSERT INTO history VALUES (?, ?, ?)", rows)
        return "written"

    def _require_row(self, changed: sqlite3.Cursor, config: RunConfig) -> None:
        if changed.rowcount != 1:
            raise LogError(
                f"the run log {self.path} has lost the run {config.hash} to another process; see that one sweep at a "
                "time uses it, and start again"
            )

    # What a run has written

    def row(self, config: RunConfig) -> dict[str, Any]:
        """The run's state, summary (dict) and history (list of dicts, one for each epoch)."""
        with self._explained():
            state, summary = self.db.execute("SELECT state, summary FROM runs WHERE hash = ?", [config.hash]).fetchone()
            epochs = self.db.execute("SELECT results FROM history WHERE hash = ? ORDER BY epoch", [config.hash])
            history = [json.loads(text) for (text,) in epochs]
        return {"state": state, "summary": json.loads(summary), "history": history}

    def records(self, history: bool = False) -> list[dict[str, Any]]:
        """One flat dict for each run: config, summary and the row's other columns, all of one moment."""
        with self._explained():
            return records(self.db, history)


def leave(db: sqlite3.Connection, file: Path, identity: tuple[int, int], process: int) -> None:
    """Close the log; if nobody else has it open, as a file that is complete by itself."""
    with contextlib.suppress(sqlite3.Error):
        if os.getpid() == process and places.identity(file) == identity:
            db.execute("PRAGMA busy_timeout = 0")
            db.execute("PRAGMA journal_mode = DELETE")
        db.close()


def understood(text: str) -> RunConfig | None:
    """The config in a row; None for one of other code, whose fields this code does not know."""
    try:
        return RunConfig.from_dict(json.loads(text))
    except ConfigError:
        return None


def this_process() -> str:
    return f"{platform.node()}:{os.getpid()}"


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        return True
    return True
