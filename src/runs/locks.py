"""Which process trains which run: locks on the bytes of an empty file, which the system releases when the process
ends, however it ends."""

import fcntl
import os
from pathlib import Path
from typing import IO

from src.errors import LogError

ALL_RUNS = 2**60  # bytes: a run's is below

# Files that are never closed: closing one would release every lock that the process has on it.
_kept: list[IO] = []


class RunLocks:
    """The locks of one process in the file beside a log; a removed file is made again, with the locks held."""

    def __init__(self, path: Path):
        self.path = path
        self._file: IO | None = None
        self._held: set[int] = set()

    def take(self, run: str, wait: bool = False) -> bool:
        """Whether the run of this hash is now this process's; False while another has it, unless it is to wait."""
        self._open()
        try:
            self._lock(byte_of(run), wait=wait)
        except BlockingIOError:
            return False
        self._held.add(byte_of(run))
        return True

    def free(self, run: str) -> None:
        self._held.discard(byte_of(run))
        fcntl.lockf(self._file, fcntl.LOCK_UN, 1, byte_of(run))

    def take_all(self) -> bool:
        """Whether no other process has any run; until `free_all` none can take one."""
        self._open()
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, ALL_RUNS, 0)
        except BlockingIOError:
            return False
        return True

    def free_all(self) -> None:
        fcntl.lockf(self._file, fcntl.LOCK_UN, ALL_RUNS, 0)

    def made(self) -> float:
        """When the file was made, in seconds since 1970, or a little later: nothing is ever written to it."""
        self._open()
        return os.fstat(self._file.fileno()).st_mtime + 1  # the file system's clock may lag behind

    def keep(self) -> None:
        """See to it that the locks held are in the file that others find, where one was removed."""
        if self._held:
            self._open()

    def _open(self) -> None:
        if self._file is not None and self._is_in_place():
            return
        self._file = open(self.path, "a")  # noqa: SIM115 (held until the process ends)
        _kept.append(self._file)
        for byte in self._held:
            try:
                self._lock(byte)
            except BlockingIOError as error:
                raise LogError(
                    f"the lock file {self.path} was removed, and another process has taken over a run of this one; "
                    "start again, and leave that file in place"
                ) from error

    def _is_in_place(self) -> bool:
        try:
            return os.path.samestat(os.fstat(self._file.fileno()), os.stat(self.path))
        except FileNotFoundError:
            return False

    def _lock(self, byte: int, wait: bool = False) -> None:
        fcntl.lockf(self._file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB), 1, byte)


def byte_of(run: str) -> int:
    return int(run[:15], 16)  # file offsets have 63 bits
