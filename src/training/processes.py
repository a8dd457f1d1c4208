"""How worker processes start and end, apart from what they do."""

import contextlib
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from typing import Any

from src.cli import go_on_unread

NURSERY = "src.training.nursery"


def start(target: Callable[..., None], *args: Any, device: str) -> BaseProcess:
    """A process that calls `target` with these arguments, and dies with this process."""
    life = {"target": _live, "args": (target, args, dict(os.environ)), "daemon": True}
    if forks(device):
        with contextlib.suppress(OSError, EOFError):  # the server was killed meanwhile
            return _forked(life)
    process = multiprocessing.get_context("spawn").Process(**life)
    process.start()
    return process


def forks(device: str) -> bool:
    """Whether processes are forked from a server that has imported torch once for all of them. On a GPU, and on macOS,
    where libraries do not survive a fork, each imports torch itself."""
    return sys.platform == "linux" and device == "cpu"


def _forked(life: dict[str, Any]) -> BaseProcess:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([NURSERY])
    with _environment_of_the_server():
        forkserver.ensure_running()
    process = context.Process(**life)
    process.start()
    return process


@contextlib.contextmanager
def _environment_of_the_server() -> Iterator[None]:
    """What the server must not have: other threads, which a fork would lose, and modules of this project's names from
    the working directory."""
    own = dict(os.environ)
    os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    os.environ |= {"PYTHONSAFEPATH": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(own)


def _live(target: Callable[..., None], args: tuple[Any, ...], environment: dict[str, str]) -> None:
    os.environ.clear()
    os.environ.update(environment)  # the parent's today, not of the day when the server began
    go_on_unread()
    threading.Thread(target=_die_with_parent, daemon=True).start()
    target(*args)


def _die_with_parent(every: float = 0.2) -> None:
    """End this process when its parent dies, or the server, without which the parent takes it for dead."""
    server = os.getppid()
    while os.getppid() == server:
        multiprocessing.parent_process().join(every)
        if not multiprocessing.parent_process().is_alive():
            break
    os._exit(1)


def stop(processes: Iterable[BaseProcess], patience: float = 10) -> None:
    """Ask processes to end, and kill those that have not after so many seconds."""
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + patience
    for process in processes:
        process.join(max(0, deadline - time.monotonic()))
        process.kill()
