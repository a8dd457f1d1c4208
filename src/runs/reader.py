"""Reading a run log without ever writing to it or beside it, in whatever state it lies there: in use, left by a
killed process, in a folder that one may only read, or copied."""

import contextlib
import json
import os
import shutil
import sqlite3
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from src.config import IN_EVERY_HASH, RunConfig
from src.errors import ConfigError, LogError

HISTORY = "history/"  # what the names of columns with one value for each epoch begin with

APPLICATION_ID = 0x504F4C41  # in the file's header: tells our databases from others
SCHEMA_VERSION = 1
COLUMNS = ("hash", "state", "error", "started", "seconds", "process", "device", "torch", "code")
BETTER_FIRST = ("finished", "diverged", "failed", "interrupted", "running")  # of several rows of one run
SIDE_FILES = ("-wal", "-shm", "-journal", "-lock")  # what SQLite and we keep beside a log

TRIES, SOON = 20, 3  # readings of a log that changes meanwhile, a tenth of a second apart
IN_USE = 2  # the file format, in a database's header, of one whose latest rows may be in its -wal


def read(path: Path, history: bool = False) -> list[dict[str, Any]]:
    """The rows of a log as `RunLog.records` gives them. LogError for what is no run log or cannot be read.

    Warns of a log that was in use when it was copied and lacks its -wal.
    """
    for attempt in range(TRIES):
        settled = attempt >= SOON  # no longer in the moment in which the log is opened or closed
        try:
            return _read(path.resolve(), path, history, settled)
        except (Changed, sqlite3.OperationalError, OSError, RuntimeError) as error:
            if settled and not isinstance(error, Changed):
                raise LogError(f"cannot read the run log {path} ({error}); name another source") from error
            time.sleep(0.1)
        except sqlite3.Error as error:
            raise LogError(f"cannot read the run log {path} ({error}); name another source") from error
    raise LogError(f"the run log {path} changes all the time; read it again when less is written to it")


class Changed(Exception):
    """The file was written to, opened or closed while it was read in a way that needs it to stand still."""


def _read(file: Path, name: Path, history: bool, settled: bool) -> list[dict[str, Any]]:
    if exists(file, "-wal"):
        # Its writers' shared memory tells what counts in the -wal; where they left none, SQLite has to make it.
        reading = connected(file, "mode=ro&readonly_shm=1") if exists(file, "-shm") else copied(file)
        with reading as db:
            return checked_records(db, name, history)
    if exists(file, "-journal"):
        with copied(file) as db:  # SQLite undoes what a killed process has begun, in the copy
            return checked_records(db, name, history)
    before, form = os.stat(file), file_format(file, name)
    # Without its -wal SQLite would make one for a file of this form: so it is told that nothing can change.
    with connected(file, "immutable=1" if form == IN_USE else "mode=ro&readonly_shm=1") as db:
        rows = checked_records(db, name, history)
    if form == IN_USE:
        if not settled or exists(file, "-wal") or not unchanged(before, os.stat(file)):
            raise Changed
        warnings.warn(
            f"{name} is a run log in use, or a copy of one, without its {file.name}-wal: runs may be missing; copy "
            "both files, or copy the log when nobody trains",
            stacklevel=4,
        )
    return rows


def exists(file: Path, side: str) -> bool:
    return Path(f"{file}{side}").exists()


def unchanged(before: os.stat_result, after: os.stat_result) -> bool:
    same = (before.st_size, before.st_mtime_ns) == (after.st_size, after.st_mtime_ns)
    return same and os.path.samestat(before, after)


def file_format(file: Path, name: Path) -> int:
    """The file format in the header of a database; LogError for what is none of ours.

    Not for a log that this process has open: to close the file would release SQLite's locks.
    """
    with open(file, "rb") as opened:
        header = opened.read(100)
    if not header:
        raise LogError(f"{name} is empty and no run log; name another source")
    if header[:16] != b"SQLite format 3\0":
        raise LogError(f"{name} is no run log; name another source")
    return header[18]


@contextlib.contextmanager
def connected(file: Path, how: str) -> Iterator[sqlite3.Connection]:
    db = sqlite3.connect(f"{file.as_uri()}?{how}", uri=True, timeout=60, isolation_level=None)
    with contextlib.closing(db):
        yield db


@contextlib.contextmanager
def copied(file: Path) -> Iterator[sqlite3.Connection]:
    """A copy of the log, with what lies beside it, for SQLite to bring into order."""
    before = os.stat(file)
    with tempfile.TemporaryDirectory() as folder:
        for side in ("", "-wal", "-journal"):
            with contextlib.suppress(FileNotFoundError):
                shutil.copyfile(f"{file}{side}", f"{folder}/copy.db{side}")
        if not unchanged(before, os.stat(file)):
            raise Changed
        with connected(Path(folder, "copy.db"), "mode=rw") as db:
            yield db


def checked_records(db: sqlite3.Connection, name: Path, history: bool) -> list[dict[str, Any]]:
    (application,) = db.execute("PRAGMA application_id").fetchone()
    (version,) = db.execute("PRAGMA user_version").fetchone()
    if application != APPLICATION_ID:
        raise LogError(f"{name} is a database of something else, no run log; name another source")
    if version > SCHEMA_VERSION:
        raise LogError(f"{name} was written by newer code; update this checkout to read it")
    return records(db, history)


def records(db: sqlite3.Connection, history: bool) -> list[dict[str, Any]]:
    """One flat dict for each run of an open log: config, summary and the row's other columns, all of one moment."""
    db.execute("BEGIN")
    try:
        (fields,) = db.execute("SELECT fields FROM schema").fetchone()
        rows = db.execute(f"SELECT config, summary, {', '.join(COLUMNS)} FROM runs ORDER BY started, hash").fetchall()
        epochs = _histories(db) if history else {}
    finally:
        db.execute("COMMIT")
    of_today = json.loads(fields) == list(IN_EVERY_HASH)
    flat = []
    for config, summary, *values in rows:
        row, config = dict(zip(COLUMNS, values, strict=True)), json.loads(config)
        of_run = epochs.get(row["hash"], {})
        if not of_today:
            config, row["hash"] = adopted(config, row["hash"])
        flat.append(row | config | json.loads(summary) | of_run)
    return flat


def adopted(config: dict[str, Any], hash: str) -> tuple[dict[str, Any], str]:
    """A config and hash of a time when hashes had other fields, in today's; as they are where that is not known."""
    try:
        known = RunConfig.from_dict(config)
    except ConfigError:
        return config, hash
    return known.to_dict(), known.hash


def _histories(db: sqlite3.Connection) -> dict[str, dict[str, list[float]]]:
    epochs: dict[str, list[dict[str, float]]] = {}
    for hash, text in db.execute("SELECT hash, results FROM history ORDER BY hash, epoch"):
        epochs.setdefault(hash, []).append(json.loads(text))
    return {hash: as_columns(rows) for hash, rows in epochs.items()}


def as_columns(epochs: list[dict[str, float]]) -> dict[str, list[float]]:
    """Results of each epoch as columns `history/NAME`, a list over epochs each (NaN where not measured)."""
    names = dict.fromkeys(name for epoch in epochs for name in epoch)
    return {HISTORY + name: [epoch.get(name, float("nan")) for epoch in epochs] for name in names}
