"""Running runs: one in this process, or many in worker processes that share a log."""

import dataclasses
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing import connection
from pathlib import Path

from src.config import RunConfig
from src.runs import LogError, RunLog
from src.training import DivergedError, Observer, prepare_process, train
from src.wandb_runs import wandb_observers

CRASHES = 2  # processes that may die over one run before it counts as failed
BAD_LOG = 3  # a worker's exit status when it cannot use the log


class Interrupted(BaseException):
    """This process was asked to stop."""


class Recorder(Observer):
    """Writes a run to the log, as it comes."""

    def __init__(self, config: RunConfig, log: RunLog):
        self.config, self.log = config, log
        self.began, self.last = time.monotonic(), {}

    def on_epoch(self, epoch: int, results: dict[str, float]) -> None:
        self.log.add_epoch(self.config, epoch, results)
        self.last = results

    def on_end(self, state: str, summary: dict[str, float], error: str | None = None) -> None:
        self.log.end(self.config, state, summary, time.monotonic() - self.began, error)


def execute(config: RunConfig, log: RunLog, device: str, observers: Sequence[Observer] = ()) -> str:
    """Train a claimed run and log it; the state in which it ends: finished, diverged or failed.

    What stops the process (Interrupted, KeyboardInterrupt, LogError) is raised again.
    """
    log.start(config, device)
    recorder, error = Recorder(config, log), None
    try:
        _, summary = train(config, device, [recorder, *observers])
        state = "finished"
    except DivergedError as diverged:
        state, summary, error = "diverged", recorder.last, str(diverged)
    except (KeyboardInterrupt, Interrupted):
        recorder.on_end("interrupted", recorder.last)
        raise
    except LogError:
        raise
    except Exception:
        state, summary, error = "failed", recorder.last, traceback.format_exc()
    recorder.on_end(state, summary, error)  # first: nothing that another observer does can lose it
    for observer in observers:
        observer.on_end(state, summary)
    return state


@dataclass(frozen=True)
class Job:
    """What each worker of a sweep is given: all points, of which it takes those that nobody else has."""

    points: Sequence[RunConfig]
    log: Path
    device: str = "cpu"
    wandb_mode: str | None = None  # None: W&B is left alone
    began: float = field(default_factory=time.time)


def work(job: Job) -> None:
    """A worker's life: train every point that is neither settled nor in other hands, then wait for those in
    other hands, in case their process dies."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent too, who then sends SIGTERM
    signal.signal(signal.SIGTERM, interrupt)
    threading.Thread(target=die_with_parent, daemon=True).start()
    prepare_process()
    try:
        log = RunLog(job.log)
        for wait in (False, True):
            settled = log.states(settled_since=job.began)
            for config in job.points:
                if config.hash not in settled and log.claim(config, wait):
                    if config.hash not in log.states(settled_since=job.began, of=config):  # still
                        execute(config, log, job.device, wandb_observers(config, job.wandb_mode))
                    log.release(config)
    except LogError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(BAD_LOG)
    except Interrupted:
        sys.exit(0)


def interrupt(*_) -> None:
    raise Interrupted


def die_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)


def run_job(job: Job, num_workers: int, every: float = 0.5) -> Iterator[None]:
    """Train the points of a job in worker processes; yields every so many seconds, for the caller to look at
    the log, and returns when all points are settled.

    A worker that dies is replaced; a run over which CRASHES of them died is logged as failed. Raises LogError
    if the log cannot be used. If the caller stops iterating, the workers log what they are at as interrupted
    and end.
    """
    log = RunLog(job.log)
    settled = log.states(settled_since=job.began)
    job = dataclasses.replace(job, points=[config for config in job.points if config.hash not in settled])
    context = multiprocessing.get_context("spawn")
    crashes: Counter[str] = Counter()
    workers: list[multiprocessing.Process] = []

    def start() -> None:
        workers.append(context.Process(target=work, args=(job,), daemon=True))
        workers[-1].start()

    try:
        for _ in range(min(num_workers, len(job.points))):
            start()
        while workers:
            connection.wait([worker.sentinel for worker in workers], timeout=every)
            for worker in [w for w in workers if not w.is_alive()]:
                workers.remove(worker)
                if worker.exitcode == BAD_LOG:
                    raise LogError(f"a worker could not use the run log {job.log}; what it holds is kept")
                if worker.exitcode:
                    give_up_on_killers(log, worker.pid, crashes)
                    start()
            yield
    finally:
        stop(workers)


def give_up_on_killers(log: RunLog, pid: int, crashes: Counter[str]) -> None:
    """Count the death of process `pid` against the run that it was at, which fails when that is too often."""
    for config in log.running(pid):
        crashes[config.hash] += 1
        if crashes[config.hash] >= CRASHES:
            log.end(config, "failed", {}, error=f"{CRASHES} processes died over it; out of memory?")


def stop(workers: Iterable[multiprocessing.Process], patience: float = 10) -> None:
    for worker in workers:
        worker.terminate()
    deadline = time.monotonic() + patience
    for worker in workers:
        worker.join(max(0, deadline - time.monotonic()))
        worker.kill()
