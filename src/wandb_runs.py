"""Weights & Biases, both ways: log a run to it, and read a sweep's runs from it.

The local log is the record; W&B being down, slow or logged out never costs a run.
"""

import os
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import Any

from src.config import RunConfig
from src.runs import LogError, as_columns
from src.training import Observer

PROJECT = "softmax-polarization"
PATIENCE = 60  # seconds to wait for W&B each time before the run goes on without it


class WandbLogger(Observer):
    """Logs a run to W&B: each epoch as history, the end as summary. Under `wandb agent`, to the agent's run."""

    def __init__(self, config: RunConfig, mode: str):
        self.run = None
        self._attempt("start a run", lambda: self._start(config, mode))

    def _start(self, config: RunConfig, mode: str) -> None:
        import wandb

        settings = wandb.Settings(init_timeout=PATIENCE)
        values = {name: value for name, value in config.to_dict().items() if value is not None}
        self.run = wandb.init(project=PROJECT, config=values, mode=mode, settings=settings)

    def on_epoch(self, epoch: int, results: dict[str, float]) -> None:
        self._attempt("log an epoch", lambda: self.run.log(results))

    def on_end(self, state: str, summary: dict[str, float]) -> None:
        self._attempt("log the summary", lambda: self.run.summary.update(summary | {"state": state}))
        self._attempt("finish the run", lambda: self.run.finish(exit_code=0 if state == "finished" else 1))

    def _attempt(self, what: str, act: Callable[[], None]) -> None:
        """Do something with W&B; the first time that it fails or hangs, say so and leave W&B alone."""
        if self.run is None and what != "start a run":
            return
        failure: list[BaseException] = []

        def attempt() -> None:
            try:
                act()
            except BaseException as error:  # wandb's own errors have no common base
                failure.append(error)

        thread = threading.Thread(target=attempt, daemon=True)
        thread.start()
        thread.join(PATIENCE)
        if failure or thread.is_alive():
            self.run = None
            reason = " ".join(str(failure[0]).split()) if failure else f"no answer in {PATIENCE} s"
            print(f"W&B could not {what} ({reason}); the local log has the run all the same", file=sys.stderr)


def wandb_observers(config: RunConfig, mode: str | None) -> list[Observer]:
    """The W&B logger of a run, or nothing for mode None."""
    return [WandbLogger(config, mode)] if mode else []


def wandb_mode(asked: str | None = None) -> str | None:
    """W&B's mode for a run: as asked for, else by W&B's own variables; None where nobody wants W&B."""
    wanted = asked or os.environ.get("WANDB_MODE") or ("online" if "WANDB_SWEEP_ID" in os.environ else None)
    return None if wanted == "disabled" else wanted


def records(source: str, history: bool = False) -> Iterator[dict[str, Any]]:
    """One flat dict for each run of the sweep `entity/project/sweep_id`, as `RunLog.records` gives them.

    Runs come a page of hundreds at a time, histories one request a run, several at once. Raises LogError if
    W&B cannot be reached, or has no such sweep.
    """
    import wandb
    from tqdm import tqdm

    entity, project, sweep = source.split("/")
    try:
        api = wandb.Api(timeout=60)
        runs = api.runs(f"{entity}/{project}", filters={"sweep": sweep}, per_page=500, lazy=False)
        total = len(runs)
        if not total:
            raise LogError(f"W&B has no runs of sweep {source}")
        with (
            ThreadPoolExecutor(8 if history else 1) as pool,
            tqdm(total=total, desc=source, unit="run") as bar,
        ):
            for record in pool.map(lambda run: as_record(run, history), runs):
                bar.update()
                yield record
    except (wandb.Error, ValueError, OSError) as error:
        reason = " ".join(str(error).split())
        raise LogError(f"cannot read {source} from W&B ({reason}); try `wandb login`, or a local source") from error


def as_record(run: Any, history: bool) -> dict[str, Any]:
    """A run of wandb.Api as a flat dict: config, summary, and with `history` lists over epochs."""
    named = {k: v for k, v in (dict(run.config) | dict(run.summary)).items() if not k.startswith("_")}
    numbers = {k: v for k, v in named.items() if isinstance(v, int | float | str | bool) or v is None}
    started = datetime.fromisoformat(run.created_at).timestamp()
    record = {"hash": run.id, "state": run.state, "started": started, "seconds": run.summary.get("_runtime")} | numbers
    if history:
        record |= as_columns([{k: v for k, v in row.items() if k[0] != "_"} for row in run.scan_history()])
    return record
