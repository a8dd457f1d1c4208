"""Rows of runs that nobody trained, for tests of what becomes of rows, and other processes that hold them."""

import contextlib
import os
import signal
import socket
from collections.abc import Callable, Iterator
from typing import Any

from tiny import tiny

from src.config import RunConfig
from src.runs import RunLog

A, B = tiny(seed=1), tiny("classification", seed=2)


def finish(log: RunLog, config: RunConfig, epochs: int = 2, **summary: float) -> None:
    log.start(config, "cpu")
    for epoch in range(epochs):
        log.add_epoch(config, epoch, {"epoch": epoch, "step": 4 * epoch, "eval/loss": 1.5 - epoch})
    log.end(config, "finished", {"eval/loss": 0.5} | summary, seconds=2.5)


@contextlib.contextmanager
def other_process(*acts: Callable[[], Any]) -> Iterator[Callable[[], bool]]:
    """A process that does one act after the other, each when it is told to by calling what is yielded, which says
    whether the act returned what is true. It is killed at the end."""
    here, there = socket.socketpair()
    pid = os.fork()
    if not pid:
        try:
            for act in acts:
                there.recv(1)
                there.send(b"1" if act() else b"0")
            there.recv(1)
        finally:
            os._exit(1)
    there.close()

    def act() -> bool:
        here.send(b"?")
        answer = here.recv(1)
        assert answer, "the other process has died"
        return answer == b"1"

    try:
        with here:
            yield act
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
