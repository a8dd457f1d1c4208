"""Bigram-Backcopy (Guo et al., arXiv 2410.13835): sinks, value drains and residual peaks in 1 to 3 layers."""

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from src import metrics
from src.errors import require
from src.model.transformer import Transformer
from src.tasks.base import HeadScore, Solved, Task, mean_clipped

TEXT = Path(__file__).parents[2] / "results" / "pretrained" / "python_topics.jsonl"
NUM_CHARACTERS, NUM_TRIGGERS = 64, 3


def character_ids(text: str) -> Tensor:
    """The text as ids 1 … 64 of its commonest characters, the commonest first; others are left out."""
    common = sorted(sorted(set(text)), key=text.count, reverse=True)[:NUM_CHARACTERS]
    ids = {character: i for i, character in enumerate(common, start=1)}
    return torch.tensor([ids[character] for character in text if character in ids])


@cache
def chain() -> Tensor:
    """The chance of each id (columns) after each id (rows), (65, 65), in the committed English text.

    Row 0 is what follows BOS: a character by how common it is, but no trigger. Rows of triggers are not used.
    """
    lines = TEXT.read_text(encoding="utf-8").splitlines()
    ids = character_ids("".join(json.loads(line)["text"] for line in lines))
    size = NUM_CHARACTERS + 1
    counts = torch.bincount(ids[:-1] * size + ids[1:], minlength=size**2).view(size, size).double()
    counts[0, NUM_TRIGGERS + 1 :] = ids.bincount(minlength=size)[NUM_TRIGGERS + 1 :].double()
    return counts / counts.sum(1, keepdim=True)


def is_trigger(ids: Tensor) -> Tensor:
    return (ids >= 1) & (ids <= NUM_TRIGGERS)


class Backcopy(Task):
    """A character bigram, but after a trigger comes what stood before it.

    Ids are BOS (0) and characters, 1 … 64 from the commonest, of which the first three are triggers (space, e, t).
    A sequence is BOS, a character that is no trigger, and then, after x_t: x_{t−1} if x_t is a trigger, else one drawn
    from the text's bigrams. Inputs are all but the last id, targets all but the first.

    A bigram needs no attention: rows of no trigger have to attend to nothing.
    """

    # About the smallest with which softmax solves it and has a sink: in one run BOS's share was 0.24 after half of the
    # steps at lr 3e-3, and 0.87 with these.
    defaults = {
        "seq_length": 33,
        "num_train": 25_600,  # 400 steps an epoch: 4,000 in all
        "num_epochs": 10,
        "batch_size": 64,
        "lr": 1e-2,
        "positional_type": "add",
        "embed_dim": 32,
        "num_layers": 1,
        "num_heads": 1,
        "use_mlp": False,
    }
    settings = ("lr", "use_residual", "num_layers", "num_heads", "use_mlp", "use_layernorm")
    accuracy = "eval/acc"
    solved = Solved("eval/acc", above=0.95, words="accuracy after triggers")
    scores = {"sink": HeadScore(r"\d+_\d+_rel_attn_bos_global", "BOS's share where no trigger is", mean_clipped)}
    causal = True
    num_tokens = num_classes = NUM_CHARACTERS + 1

    @classmethod
    def check(cls, config) -> None:
        require(config.seq_length >= 4, f"seq_length={config.seq_length} must be at least 4 for task=backcopy")
        require(TEXT.exists(), f"task=backcopy takes its bigrams from {TEXT}, which is missing; restore it")

    def __init__(self, *members):
        self.num_positions = members[0].seq_length - 1

    def sequences(self, num: int, generator: Generator) -> tuple[Tensor, Tensor]:
        """Inputs and targets, each (num, seq_length − 1)."""
        cumulative = chain().cumsum(1)
        ids = [torch.zeros(num, dtype=torch.long)]
        for t in range(self.num_positions):
            chance = torch.rand(num, 1, generator=generator, dtype=torch.float64)
            drawn = torch.searchsorted(cumulative[ids[-1]], chance).squeeze(1).clamp(max=NUM_CHARACTERS)
            ids.append(torch.where(is_trigger(ids[-1]), ids[t - 1], drawn))
        sequence = torch.stack(ids, dim=1)
        return sequence[:, :-1], sequence[:, 1:]

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy over all positions: logits (S, B, T, 65), targets (S, B, T), to (S,)."""
        return self.losses(logits, targets).mean((1, 2))

    def losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy at each position, (S, B, T)."""
        return F.cross_entropy(logits.flatten(0, 2), targets.flatten(), reduction="none").view(targets.shape)

    def accuracies(self, logits: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """acc, over the positions after a trigger, and excess_loss, by how much the loss at the others exceeds that of
        who knows the bigrams, in nats: (S,) each."""
        inputs = F.pad(targets[..., :-1], (1, 0))
        copies = is_trigger(inputs)
        right = logits.argmax(-1) == targets
        least = -chain().to(logits)[inputs, targets].log()
        excess = (self.losses(logits, targets) - least).masked_fill(copies, 0)
        return {
            "acc": (right & copies).sum((1, 2)) / copies.sum((1, 2)),
            "excess_loss": excess.sum((1, 2)) / (~copies).sum((1, 2)),
        }

    def counted(self, inputs: Tensor) -> Tensor:
        """The query rows that have to attend to nothing: of no trigger, and not BOS's, (S, B, T)."""
        return inputs > NUM_TRIGGERS

    def final_metrics(
        self,
        model: Transformer,
        weights: list[Tensor],
        inputs: Tensor,
        targets: Tensor,
        generators: Sequence[Generator],
    ) -> list[dict[str, float]]:
        """BOS's share in the rows that have to attend to nothing."""
        counted = self.counted(inputs)
        return metrics.collect(lambda w: metrics.bos_attention(w, counted), weights)
