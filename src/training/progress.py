"""Progress bars of training."""

import sys
import time

from torch import Tensor
from tqdm import tqdm

from src.config import RunConfig
from src.tasks import find_task
from src.training.loop import Observer, num_steps


def watched() -> bool:
    """Whether somebody looks at stderr as it is written: in a terminal, or in a notebook."""
    if sys.stderr is None:  # closed
        return False
    return sys.stderr.isatty() or type(sys.stderr).__module__.startswith("ipykernel")


PACE = {"mininterval": 0.5 if watched() else 30}  # seconds between lines, in a file few


class ProgressBar(Observer):
    """Steps, loss, accuracy and time left of one run."""

    def __init__(self, config: RunConfig):
        self.accuracy = find_task(config.task).accuracy
        self.bar = tqdm(total=num_steps(config), desc=config.title, unit="step", **PACE)
        self.shown: dict[str, str] = {}
        self.due = 0.0

    def on_step(self, step: int, loss: Tensor, model) -> None:
        self.bar.update()
        if time.monotonic() > self.due:  # reading the loss makes a GPU wait
            self.due = time.monotonic() + 0.2
            self.bar.set_postfix(self.shown | {"loss": f"{loss.item():.3f}"}, refresh=False)

    def on_epoch(self, epoch: int, results: dict[str, float]) -> None:
        self.shown = {"accuracy": f"{results[self.accuracy]:.3f}"}

    def on_end(self, state: str, summary: dict[str, float], error: str | None = None) -> None:
        self.bar.close()
