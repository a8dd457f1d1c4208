"""The file of a run log: made, opened, kept apart from others' files, closed.

While a log is in use, its latest rows are in a second file, FILE-wal; each run's end brings the main file up to date.
The last process to close the log turns it into a file that is complete by itself, and says so in its header: from
this a reader (`reader.read`) knows a copy that lacks its -wal.
"""

import contextlib
import json
import os
import sqlite3
import time
import weakref
from collections.abc import Iterator
from pathlib import Path

from src.config import IN_EVERY_HASH, RunConfig
from src.errors import ConfigError, LogError
from src.runs import places
from src.runs.locks import RunLocks
from src.runs.reader import APPLICATION_ID, SCHEMA_VERSION

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


class LogFile:
    """The database of a run log, made if missing.

    Raises LogError for a file that is no run log or cannot be opened, and for a folder where processes cannot be kept
    apart.
    """

    def __init__(self, path: Path | str):
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
        # In this order: who makes the log at the same moment writes both at once.
        (tables,) = self.db.execute("SELECT count(*) FROM sqlite_master").fetchone()
        (application,) = self.db.execute("PRAGMA application_id").fetchone()
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


def leave(db: sqlite3.Connection, file: Path, identity: tuple[int, int], process: int) -> None:
    """If nobody else has the log open, make it a file that is complete by itself."""
    with contextlib.suppress(sqlite3.Error):
        if os.getpid() == process and places.identity(file) == identity:
            db.execute("PRAGMA busy_timeout = 0")
            try:
                db.execute("PRAGMA journal_mode = DELETE")
            finally:  # whoever still holds the connection may use it
                db.execute(f"PRAGMA busy_timeout = {1000 * PATIENCE}")
