"""Logging runs to Weights & Biases.

The local log is the record; W&B being down, slow or logged out never costs a run.
"""

import json
import math
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from src.config import RunConfig
from src.runs.wandb_reader import MEMBERS
from src.training.loop import Observer

PROJECT = "softmax-polarization"
PATIENCE = 60  # seconds to wait for W&B each time before the run goes on without it
REST = 600  # seconds for which W&B is left alone by all runs of a process after it has not answered


class Connection:
    """A run of W&B's. The first thing that fails or hangs is told, and W&B is left alone from then on."""

    resting_until = -math.inf  # for all connections: the many members of a stack wait for a dead server once

    def __init__(self, values: dict[str, Any], mode: str):
        """`values` becomes the run's config, less what is None."""
        self.run = None
        values = {name: value for name, value in values.items() if value is not None}
        self.attempt("start a run", lambda: self._start(values, mode))

    def _start(self, values: dict[str, Any], mode: str) -> None:
        import wandb

        # create_new: the members of a stack have a run each at the same time
        settings = wandb.Settings(init_timeout=PATIENCE, reinit="create_new")
        self.run = wandb.init(project=PROJECT, config=values, mode=mode, settings=settings)

    def finish(self, summary: dict[str, Any], success: bool) -> None:
        self.attempt("log the summary", lambda: self.run.summary.update(summary))
        self.attempt("finish the run", lambda: self.run.finish(exit_code=0 if success else 1))

    def attempt(self, what: str, act: Callable[[], None]) -> None:
        starting = what == "start a run"
        if (self.run is None and not starting) or (starting and time.monotonic() < Connection.resting_until):
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
            Connection.resting_until = -math.inf if failure else time.monotonic() + REST
            reason = " ".join(str(failure[0]).split()) if failure else f"no answer in {PATIENCE} s"
            print(f"W&B could not {what} ({reason}); the local log has the run all the same", file=sys.stderr)


class WandbLogger(Observer):
    """Logs a run to W&B: each epoch as history, the end as summary. Under `wandb agent`, to the agent's run."""

    def __init__(self, config: RunConfig, mode: str):
        self.connection, self.last = Connection(config.to_dict(), mode), -1

    def on_epoch(self, epoch: int, results: dict[str, float]) -> None:
        if epoch > self.last:  # a stack that was too large for the GPU starts again
            self.connection.attempt("log an epoch", lambda: self.connection.run.log(results))
            self.last = epoch

    def on_end(self, state: str, summary: dict[str, float], error: str | None = None) -> None:
        self.connection.finish(summary | {"state": state}, success=state == "finished")


def log_cell(connection: Connection, rows: list[dict[str, Any]]) -> None:
    """Log the runs of a cell to its W&B run, as a table with a row for each (`RunLog.records` with history), and
    end it.

    A cell of the table is a number or a text; epochs are a text in JSON, and so are infinities.
    """

    def log_table() -> None:
        import wandb

        names = list(dict.fromkeys(name for row in rows for name in row if name != "process"))
        data = [[json.dumps(v) if is_text_in_json(v := row.get(name)) else v for name in names] for row in rows]
        connection.run.log({MEMBERS: wandb.Table(columns=names, data=data, allow_mixed_types=True)})

    connection.attempt("log the members", log_table)
    states = Counter(row["state"] for row in rows)
    connection.finish({f"num_{state}": count for state, count in states.items()}, success=states.keys() <= {"finished"})


def is_text_in_json(value: Any) -> bool:
    """Whether a table holds the value as JSON: lists, and numbers that no JSON has."""
    return isinstance(value, list) or (isinstance(value, float) and not math.isfinite(value))


def wandb_observers(config: RunConfig, mode: str | None) -> list[Observer]:
    """The W&B logger of a run, or nothing for mode None."""
    return [WandbLogger(config, mode)] if mode else []


def wandb_mode(asked: str | None = None) -> str | None:
    """W&B's mode for a run: as asked for, else by W&B's own variables; None where nobody wants W&B."""
    wanted = asked or os.environ.get("WANDB_MODE") or ("online" if "WANDB_SWEEP_ID" in os.environ else None)
    return None if wanted == "disabled" else wanted
