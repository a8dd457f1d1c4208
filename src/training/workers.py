"""Running runs: a stack of them in this process, or many stacks in worker processes that share a log."""

import dataclasses
import os
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch

from src.config import RunConfig
from src.runs import LogError, RunLog
from src.runs.provenance import git_commit
from src.training import processes
from src.training.inspection import ModelKeeper
from src.training.loop import Observer, prepare_process, train_stack
from src.training.stacks import evenly, members_that_fit
from src.training.wandb_logger import wandb_observers

CRASHES = 2  # processes that may die over one run before it counts as failed
FALSE_STARTS = 3  # processes in succession that may die while they are at no run
# A worker's exit statuses when it cannot use the log, or the GPU any more, and when it was asked to stop.
BAD_LOG, BROKEN_GPU, STOPPED = 3, 4, 5


class Interrupted(BaseException):
    """This process was asked to stop."""


class WorkersError(Exception):
    """Workers cannot train anything; one sentence."""


class Recorder(Observer):
    """Writes a run to the log, as it comes. `seconds` is its share of the time of its stack."""

    def __init__(self, config: RunConfig, log: RunLog, members: int):
        self.config, self.log, self.members = config, log, members
        self.began, self.last, self.state = time.monotonic(), {}, "running"

    def on_epoch(self, epoch: int, results: dict[str, float]) -> None:
        self.log.add_epoch(self.config, epoch, results)
        self.last = results

    def on_end(self, state: str, summary: dict[str, float], error: str | None = None) -> None:
        self.log.end(self.config, state, summary, (time.monotonic() - self.began) / self.members, error)
        self.state = state


def execute(
    configs: Sequence[RunConfig],
    log: RunLog,
    device: str,
    observers: Sequence[Sequence[Observer]] | None = None,
    models: Path | None = None,
) -> list[str]:
    """Train claimed runs as one stack and log each; the states in which they end: finished, diverged or failed. Their
    models are kept in the folder `models`, if there is one.

    A stack that fails, since it is too large for the GPU's memory or one of its runs raises an error, is trained in
    halves. What stops the process (Interrupted, KeyboardInterrupt, LogError) is raised again.
    """
    observers = observers or [()] * len(configs)
    recorders = [Recorder(config, log, len(configs)) for config in configs]
    # The recorder before all who may fail: nothing that another observer does can lose a result. Only the model is
    # kept before the log says that the run is finished, since it would not be trained again.
    keepers = [[ModelKeeper(config, models)] if models else [] for config in configs]
    watching = [[*keeper, recorder, *own] for keeper, recorder, own in zip(keepers, recorders, observers, strict=True)]
    too_large = False
    try:
        for config in configs:
            log.start(config, device)
        train_stack(configs, device, watching)
    except (KeyboardInterrupt, Interrupted):
        interrupt_all(recorders, log)
        raise
    except LogError:
        raise
    except Exception as error:
        too_large = isinstance(error, torch.OutOfMemoryError)
        if len(configs) == 1:
            fail(recorders, watching, traceback.format_exc())
    states = {i: recorder.state for i, recorder in enumerate(recorders)}
    left = [i for i, state in states.items() if state == "running"]
    if left:  # here, where the error and the memory that it held are gone
        if too_large:
            torch.cuda.empty_cache()
        interrupt_all(recorders, log)  # until its half's turn, this process is not at a run
        middle = len(left) // 2
        for half in filter(None, (left[:middle], left[middle:])):
            again = execute([configs[i] for i in half], log, device, [observers[i] for i in half], models)
            states |= zip(half, again, strict=True)
    return list(states.values())


def interrupt_all(recorders: Sequence[Recorder], log: RunLog) -> None:
    """End the runs that are still running as interrupted, of which others who look on learn nothing. Those are what
    the log says: a run's end may be there before its recorder knows."""
    running = {config.hash for config in log.running(os.getpid())}
    for recorder in recorders:
        if recorder.config.hash in running:
            recorder.on_end("interrupted", recorder.last)


def fail(recorders: Sequence[Recorder], watching: Sequence[Sequence[Observer]], error: str) -> None:
    """End the runs that are still running as failed."""
    for recorder, observers in zip(recorders, watching, strict=True):
        if recorder.state == "running":
            for observer in observers:
                observer.on_end("failed", recorder.last, error)


@dataclass(frozen=True)
class Job:
    """What each worker of a sweep is given: all stacks, of which it takes the runs that nobody else has."""

    stacks: Sequence[Sequence[RunConfig]]
    log: Path
    device: str = "cpu"
    wandb_mode: str | None = None  # None: W&B is left alone
    fit: bool = False  # whether the stacks are to be cut to what the GPU's memory holds
    models: Path | None = None  # the folder in which trained models are kept
    began: int | None = None  # how many attempts at runs the log had then: what failed before is tried again

    def __post_init__(self):
        if self.began is None:
            object.__setattr__(self, "began", RunLog(self.log).attempts())

    @property
    def points(self) -> list[RunConfig]:
        return [config for stack in self.stacks for config in stack]

    def less(self, settled: Container[str]) -> "Job":
        """The job without runs whose hash is among the settled."""
        stacks = [[config for config in stack if config.hash not in settled] for stack in self.stacks]
        return dataclasses.replace(self, stacks=[stack for stack in stacks if stack])

    def alone(self, suspects: Container[str]) -> "Job":
        """The job with each run whose hash is among the suspects in a stack of its own."""
        rest = self.less(suspects).stacks
        return dataclasses.replace(self, stacks=[*rest, *([c] for c in self.points if c.hash in suspects)])


def work(job: Job) -> None:
    """A worker's life: train every run that is neither settled nor in other hands, then wait for those in
    other hands, in case their process dies."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent too, who then sends SIGTERM
    signal.signal(signal.SIGTERM, interrupt)
    prepare_process()
    try:
        log = RunLog(job.log)
        while (job := job.less(log.states(settled_since=job.began))).stacks:
            trained = [work_at(stack, log, job) for stack in job.stacks]
            if not any(trained):
                other = job.stacks[0][0]
                log.claim(other, wait=True)
                log.release(other)
    except LogError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(BAD_LOG)
    except Interrupted:
        sys.exit(STOPPED)


def work_at(stack: Sequence[RunConfig], log: RunLog, job: Job) -> bool:
    """Train the runs of a stack that are neither settled nor in other hands; whether there were any."""
    claimed = [config for config in stack if log.claim(config)]
    ours = [config for config in claimed if not log.states(settled_since=job.began, of=config)]
    size = members_that_fit(ours) if ours and job.fit else len(ours)
    for part in evenly(ours, size) if ours else []:
        observers = [wandb_observers(config, job.wandb_mode) for config in part]
        execute(part, log, job.device, observers, job.models)
        if job.device == "cuda" and gpu_is_broken():
            sys.exit(BROKEN_GPU)
    for config in claimed:
        log.release(config)
    return bool(ours)


def gpu_is_broken() -> bool:
    """Whether an error has left CUDA of no use to this process, as an illegal memory access does, or its memory, as a
    graph that could not be recorded may."""
    try:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
    except RuntimeError:
        return True
    return False


def interrupt(*_) -> None:
    raise Interrupted


def run_job(job: Job, num_workers: int, every: float = 0.5) -> Iterator[None]:
    """Train the runs of a job in worker processes; yields every so many seconds, for the caller to look at the
    log, and returns when all runs are settled.

    A worker that dies, or that somebody else asks to stop, is replaced. After a death the runs of the stack that it was
    at are trained one by one; a run over which CRASHES of them died is logged as failed. Raises LogError if the log
    cannot be used, WorkersError if workers die before they are at any run. If the caller stops iterating, the workers
    log what they are at as interrupted and end.
    """
    log = RunLog(job.log)
    job = job.less(log.states(settled_since=job.began))
    git_commit()  # says if it is unknown, here and not in every worker
    crashes: Counter[str] = Counter()
    false_starts = 0
    workers: list[BaseProcess] = []
    try:
        for _ in range(min(num_workers, len(job.stacks))):
            workers.append(processes.start(work, job, device=job.device))
        while workers:
            connection.wait([worker.sentinel for worker in workers], timeout=every)
            for worker in [w for w in workers if not w.is_alive()]:
                workers.remove(worker)
                if worker.exitcode == BAD_LOG:
                    raise LogError(f"a worker could not use the run log {job.log}; what it holds is kept")
                if worker.exitcode not in (0, STOPPED):
                    suspects = log.running(worker.pid)
                    false_starts = 0 if suspects or worker.exitcode == BROKEN_GPU else false_starts + 1
                    if false_starts > FALSE_STARTS:
                        raise WorkersError(f"{false_starts} workers died before they could train; their errors say why")
                    if len(suspects) > 1:
                        job = job.alone({config.hash for config in suspects})
                    else:
                        give_up_on_killers(log, worker.pid, suspects, crashes)
                if worker.exitcode:
                    workers.append(processes.start(work, job, device=job.device))
            yield
    finally:
        processes.stop(workers)


def give_up_on_killers(log: RunLog, pid: int, suspects: Sequence[RunConfig], crashes: Counter[str]) -> None:
    """Count the death of process `pid` against the runs that it was at, which fail when that is too often."""
    for config in suspects:
        crashes[config.hash] += 1
        if crashes[config.hash] >= CRASHES:
            log.give_up(config, pid, f"{CRASHES} processes died over it; out of memory?")
