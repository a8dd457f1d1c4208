"""The run log, as those use it who write it and resume from it.

A log is one SQLite file with a row for each config, and the results of each epoch as they come; several
processes may write to it at once. Beside it lies an empty lock file (`locks.RunLocks`): who trains a run holds a lock
on the run's byte of that file.
"""

import json
import os
import platform
import sqlite3
import subprocess
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from src.config import RunConfig
from src.errors import ConfigError, LogError
from src.runs.log_file import LogFile
from src.runs.provenance import ROOT, device_name, git_commit
from src.runs.reader import BETTER_FIRST, records

DEFAULT_LOG = ROOT / "logs" / "runs.db"
PROCESSES = Path("/proc")  # where Linux tells of processes


class RunLog(LogFile):
    """A run log, made if missing. Raises LogError for a file that is no run log or cannot be opened, and for a folder
    where processes cannot be kept apart."""

    def __init__(self, path: Path | str = DEFAULT_LOG):
        super().__init__(path)

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
        began = "SELECT process, started FROM runs WHERE hash = ? AND state = 'running' AND started < ?"
        for process, started in self.db.execute(began, [config.hash, self.locks.made()]).fetchall():
            machine, _, pid = process.rpartition(":")
            if machine == platform.node() and int(pid) != os.getpid() and is_alive(int(pid), since=started):
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
                [name_of(pid)],
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
                process=name_of(os.getpid()),
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
                [epoch, json.dumps(results), config.hash, name_of(os.getpid())],
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
        """LogError if this process is not at the run: what has ended, or is another's by now, stays as it is."""
        with self._transaction():
            ended = self.db.execute(
                "UPDATE runs SET state = ?, summary = ?, seconds = ?, error = ? "
                "WHERE hash = ? AND state = 'running' AND process = ?",
                [state, json.dumps(summary), seconds, error, config.hash, name_of(os.getpid())],
            )
            self._require_row(ended, config)
        with self._explained():  # as far as others let us: what is copied without its -wal has this run
            self.db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()

    def give_up(self, config: RunConfig, pid: int, error: str) -> None:
        """Log a run as failed that process `pid` of this machine died over, unless another has taken it since."""
        with self._transaction():
            self.db.execute(
                "UPDATE runs SET state = 'failed', error = ? WHERE hash = ? AND state = 'running' AND process = ?",
                [error, config.hash, name_of(pid)],
            )

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


def understood(text: str) -> RunConfig | None:
    """The config in a row; None for one of other code, whose fields this code does not know."""
    try:
        return RunConfig.from_dict(json.loads(text))
    except ConfigError:
        return None


def name_of(pid: int) -> str:
    """What rows call a process of this machine."""
    return f"{platform.node()}:{pid}"


def is_alive(pid: int, since: float) -> bool:
    """Whether the process that had this number at a time, in seconds since 1970, lives: it may be another's by now."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        pass
    return began(pid) < since + 60  # clocks are set now and then


def began(pid: int) -> float:
    """When a process began, in seconds since 1970; long ago where the system does not tell."""
    stat = PROCESSES / f"{pid}" / "stat"
    try:
        if not stat.exists():  # as on macOS
            said = subprocess.run(["ps", "-o", "etime=", "-p", f"{pid}"], capture_output=True, text=True)
            return time.time() - seconds_of(said.stdout)
        fields = stat.read_text(errors="replace").rpartition(")")[2].split()
    except (OSError, ValueError):
        return 0.0
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + int(fields[19]) / os.sysconf("SC_CLK_TCK")


def seconds_of(elapsed: str) -> int:
    """Seconds of a time as `ps` writes it: [[days-]hours:]minutes:seconds. ValueError for what is none."""
    days, _, clock = elapsed.strip().rpartition("-")
    units = zip(reversed(clock.split(":")), (1, 60, 3600), strict=False)
    return int(days or 0) * 86400 + sum(int(number) * unit for number, unit in units)
