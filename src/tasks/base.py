"""What a task declares: everything that is particular to it."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Generator, Tensor

from src import metrics
from src.model.transformer import EVERYWHERE, Transformer


@dataclass(frozen=True)
class Solved:
    """What says that a run solves its task: a logged metric above a bound, or below one.

    Args:
        metric: Its logged name.
        above, below: The bound; one of them.
        words: How figures say it.
    """

    metric: str
    above: float | None = None
    below: float | None = None
    words: str = ""

    def of(self, values: np.ndarray) -> np.ndarray:
        """Which of the metric's values (NaN where there is none) say so."""
        return np.asarray(values > self.above if self.below is None else values < self.below)

    def __str__(self) -> str:
        bound = f"> {self.above:g}" if self.below is None else f"< {self.below:g}"
        return f"{self.words or self.metric} {bound}"


@dataclass(frozen=True)
class HeadScore:
    """A number for each run, of what is logged for each of its heads.

    Args:
        columns: Regular expression that the names of the heads' columns match in full.
        label: What it is, for axes and tables.
        over_heads: From values (runs, heads), NaN where a run lacks a head, to (runs,).
        solved_only: Whether it is of runs that solve the task alone.
    """

    columns: str
    label: str
    over_heads: Callable[[np.ndarray], np.ndarray]
    solved_only: bool = False


def share_above(threshold: float) -> Callable[[np.ndarray], np.ndarray]:
    """The share of each run's heads whose value exceeds the threshold."""
    return lambda heads: np.nanmean(np.where(np.isnan(heads), np.nan, heads > threshold), axis=1)


def mean_clipped(heads: np.ndarray) -> np.ndarray:
    """The mean over heads of values cut to [0, 1]."""
    return np.nanmean(heads.clip(0, 1), axis=1)


def largest(heads: np.ndarray) -> np.ndarray:
    return np.nanmax(heads, axis=1)


# The paper's values of the fields that each task may set its own default of, but need not.
USUAL = {
    "lr": 1e-3,
    "num_epochs": 10,
    "batch_size": 256,
    "embed_dim": 128,
    "num_layers": 2,
    "num_heads": 4,
    "use_mlp": True,
    "use_layernorm": True,
}


class Task(ABC):
    """A task of a stack of S runs, equal in everything but seed, lr and aux_loss_weight.

    What it measures of their model comes as one dict for each member. A subclass declares what its runs are (the
    class attributes), and implements `sequences`, `loss`, `accuracies` and `final_metrics`.
    It is made of the configs of the stack's members: `Task(*configs)`.

    Class attributes:
        defaults: The fields of RunConfig that are None unless a task has them, with this task's values. Needed are
            positional_type, seq_length and num_train; those of USUAL have their value there unless given.
        settings: The fields that tell its runs apart, attention type and seed aside.
        accuracy: The logged metric that a progress bar and a closing table show.
        solved: What says that a run solves the task.
        scores: Numbers of a run by name; the first one is drawn at the end of a sweep.
        words: How panels call a value of a field, {("shift_query_token", True): "shift"}, or a field,
            {"aux_loss_weight": "aux"}.
        causal: Whether positions see earlier ones alone.
        anchor: The position that says nothing of the task, BOS or CLS, so that attention there may be to do nothing.

    Attributes of a task that `__init__` sets where they depend on the config:
        read: The positions whose outputs the loss is of, a slice.
        evaluated: The positions that are looked at in evaluation.
        num_tokens: Token ids of the inputs; None for inputs that are vectors of num_features numbers.
        num_classes: Outputs at a position.
        num_positions: The length of the inputs.
        num_sets: How many different inputs there are, their order aside, where they may be few.
    """

    defaults: ClassVar[Mapping[str, Any]] = {}
    settings: ClassVar[Sequence[str]] = ("lr", "num_layers", "num_heads", "use_mlp", "use_layernorm")
    accuracy: ClassVar[str] = "eval/acc"
    solved: ClassVar[Solved] = Solved("eval/acc", above=0.95, words="accuracy")
    scores: ClassVar[Mapping[str, HeadScore]] = {}
    words: ClassVar[Mapping[Any, str]] = {}
    causal: ClassVar[bool] = False
    anchor: ClassVar[int] = 0

    read: slice = EVERYWHERE
    evaluated: slice = EVERYWHERE
    num_tokens: int | None = None
    num_features: int | None = None
    num_classes: int
    num_positions: int
    num_sets: int | None = None

    @classmethod  # noqa: B027 (a task may have nothing to check)
    def check(cls, config) -> None:
        """Raises ConfigError (`src.errors.require`) for a config whose fields do not fit the task."""

    @abstractmethod
    def sequences(self, num: int, generator: Generator) -> tuple[Tensor, Tensor]:
        """Inputs (num, T), or (num, T, num_features), and targets (num, ...)."""

    @abstractmethod
    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The loss of each member, (S,): logits (S, B, R, num_classes) at the positions read, targets (S, B, ...)."""

    @abstractmethod
    def accuracies(self, logits: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """What is logged as eval/NAME after each epoch, (S,) each; logits at the positions evaluated."""

    def counted(self, inputs: Tensor) -> Tensor:
        """The query rows of which sinks are measured, true in (S, B, T); inputs (S, B, T, ...). By default all but the
        first, which may see itself alone."""
        counted = inputs.new_ones(inputs.shape[:3], dtype=torch.bool)
        counted[..., 0] = False
        return counted

    def attention_entropies(self, weights: list[Tensor]) -> list[dict[str, float]]:
        """Of each layer's weights (S, B, H, R, T), for each member: {layer}_{head}_attn_entropy, of all rows where
        positions see earlier ones alone, else of the last."""
        rows = metrics.causal_entropy if self.causal else lambda w: metrics.row_entropy(w[..., -1, :])
        return metrics.collect(lambda w: {"attn_entropy": rows(w)}, weights)

    @abstractmethod
    def final_metrics(
        self,
        model: Transformer,
        weights: list[Tensor],
        inputs: Tensor,
        targets: Tensor,
        generators: Sequence[Generator],
    ) -> list[dict[str, float]]:
        """What is measured once, at the end, of the model and its weights on evaluation sequences, for each member."""
