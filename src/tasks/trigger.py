"""Trigger-conditional averaging (arXiv 2603.11487): under softmax a sink is a theorem here."""

from collections.abc import Sequence

import torch
from torch import Generator, Tensor

from src import metrics
from src.errors import require
from src.model.transformer import Transformer
from src.tasks.base import HeadScore, Solved, Task, mean_clipped

NUM_FEATURES = 16
BOS, TRIGGER, OTHER = 0, 1, NUM_FEATURES - 1  # features that say what a position is; those between are content


class Trigger(Task):
    """At the trigger, the mean of the vectors up to it; nothing elsewhere.

    Sequences of seq_length vectors of 16 features. The first is BOS: feature 0 is 1, all else 0. The others have
    features 2 … 14 uniform in (−1, 1). The trigger stands at j, uniform in 2 … seq_length − 1: its feature 1 is 1 and
    its feature 15 is 0; the others' are 0 and 1. Targets are 0 at every position but j, where they are the mean of
    x_1 … x_j, all features. Without use_bos position 0 is like the others and belongs to the mean.

    A softmax model that solves it must put its attention somewhere at every other position, where the output has to
    be 0: on BOS, the anchor, whose value can be 0.
    """

    defaults = {
        "seq_length": 16,
        "num_train": 25_600,  # 200 steps an epoch: 6,000 in all
        "num_epochs": 30,
        "batch_size": 128,
        "positional_type": "no",
        "use_bos": True,
        "lr": 3e-3,
        "embed_dim": 32,
        "num_layers": 1,
        "num_heads": 1,
        "use_mlp": False,
        "use_layernorm": False,
    }
    settings = ("lr", "use_bos", "use_residual", "num_layers", "num_heads", "use_mlp", "use_layernorm")
    accuracy = "eval/max_error"
    solved = Solved("eval/max_error", below=0.05, words="largest error")
    scores = {"sink": HeadScore(r"\d+_\d+_abs_attn_bos", "BOS's weight where no trigger is", mean_clipped)}
    words = {("use_bos", True): "BOS", ("use_bos", False): "no BOS"}
    causal = True
    num_features = num_classes = NUM_FEATURES

    @classmethod
    def check(cls, config) -> None:
        require(config.seq_length >= 4, f"seq_length={config.seq_length} must be at least 4 for task=trigger")

    def __init__(self, *members):
        self.num_positions, self.use_bos = members[0].seq_length, members[0].use_bos

    def sequences(self, num: int, generator: Generator) -> tuple[Tensor, Tensor]:
        """Inputs and targets, each (num, seq_length, 16)."""
        T = self.num_positions
        x = torch.zeros(num, T, NUM_FEATURES)
        x[..., TRIGGER + 1 : OTHER] = 2 * torch.rand(num, T, OTHER - TRIGGER - 1, generator=generator) - 1
        x[..., OTHER] = 1
        rows, places = torch.arange(num), torch.randint(2, T, (num,), generator=generator)
        x[rows, places, TRIGGER], x[rows, places, OTHER] = 1, 0
        if self.use_bos:
            x[:, 0] = 0
            totals, counts = x.cumsum(1), places
            x[:, 0, BOS] = 1
        else:
            totals, counts = x.cumsum(1), places + 1
        targets = torch.zeros_like(x)
        targets[rows, places] = totals[rows, places] / counts[:, None]
        return x, targets

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Mean squared error over positions and features: outputs and targets (S, B, T, 16), to (S,)."""
        return (outputs - targets).square().mean((1, 2, 3))

    def accuracies(self, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """max_error, the largest error of any sequence, position and feature: (S,)."""
        return {"max_error": (outputs - targets).abs().amax((1, 2, 3))}

    def counted(self, inputs: Tensor) -> Tensor:
        """The query rows that have to attend to nothing: all but the first and the trigger, (S, B, T)."""
        counted = inputs[..., TRIGGER] == 0
        counted[..., 0] = False
        return counted

    def final_metrics(
        self,
        model: Transformer,
        weights: list[Tensor],
        inputs: Tensor,
        targets: Tensor,
        generators: Sequence[Generator],
    ) -> list[dict[str, float]]:
        """The weight of the first position, BOS if there is one, in the rows that have to attend to nothing."""
        counted = self.counted(inputs)
        return metrics.collect(lambda w: metrics.bos_attention(w, counted), weights)
