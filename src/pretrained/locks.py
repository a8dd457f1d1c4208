"""Two processes at one thing: the second waits for the first."""

import fcntl
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def locked(path: Path, reason: str) -> Iterator[None]:
    """Holds the lock file `path`; if another process does, says the reason and waits. It is free when its holder
    ends, however that ends."""
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"{reason}; waiting for it (Ctrl-C to leave)", file=sys.stderr)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
