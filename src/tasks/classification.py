"""Which group a set of tokens is from (Section 4.2)."""

import math
from collections.abc import Sequence

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from src import metrics
from src.errors import require
from src.model.transformer import Transformer
from src.tasks.base import HeadScore, Solved, Task, largest, mean_clipped
from src.tasks.sequences import sample_distinct


class Classification(Task):
    """Which of num_labels groups of tokens a set of tokens is drawn from (Section 4.2), read at CLS.

    The tokens 1 … vocab_size − 1 form num_labels equal consecutive groups; a sequence is seq_length − 1
    distinct tokens of one group in random order, then CLS (0).
    """

    defaults = {
        "vocab_size": 41,
        "seq_length": 11,
        "num_train": 10_000,
        "positional_type": "no",
        "num_labels": 4,
    }
    settings = ("lr", "num_layers", "num_heads", "vocab_size", "use_mlp", "use_layernorm")
    accuracy = "eval/acc"
    solved = Solved("eval/acc", above=0.95, words="accuracy")
    scores = {
        "sparsity": HeadScore(r"\d+_\d+_rel_attn_max", "sparsity score", mean_clipped),
        "flip_rate": HeadScore(r"mixing/\d+_\d+/avg_top1_dominance_rate", "flip rate", largest),
    }
    words = {"vocab_size": "vocabulary"}
    causal = False
    anchor = -1
    read = evaluated = slice(-1, None)

    @classmethod
    def check(cls, config) -> None:
        labels, vocab, length = config.num_labels, config.vocab_size, config.seq_length
        require(labels >= 2, f"num_labels={labels} must be at least 2 for there to be a choice")
        require(
            vocab > 1 and (vocab - 1) % labels == 0,
            f"vocab_size={vocab} must be 1 more than a multiple of num_labels={labels}, so that the labels' groups of "
            "tokens are equal",
        )
        group = (vocab - 1) // labels
        require(
            3 <= length <= group + 1,
            f"seq_length={length} must be from 3 to {group + 1}: 2 to {group} distinct tokens of one group of "
            f"vocab_size={vocab}, and CLS",
        )

    def __init__(self, *members):
        config = members[0]
        self.num_tokens, self.num_classes = config.vocab_size, config.num_labels
        self.group_size = (config.vocab_size - 1) // config.num_labels
        self.num_context, self.num_positions = config.seq_length - 1, config.seq_length
        self.num_sets = self.num_classes * math.comb(self.group_size, self.num_context)

    def sequences(self, num: int, generator: Generator) -> tuple[Tensor, Tensor]:
        """Inputs (num, seq_length) and labels (num,)."""
        labels = torch.randint(self.num_classes, (num,), generator=generator)
        tokens = sample_distinct(num, self.group_size, self.num_context, generator)
        tokens += 1 + labels[:, None] * self.group_size
        return F.pad(tokens, (0, 1)), labels

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy at the CLS position, the last: logits (S, B, R, classes), labels (S, B), to (S,)."""
        of_each = F.cross_entropy(logits[:, :, -1].flatten(0, 1), labels.flatten(), reduction="none")
        return of_each.view(labels.shape).mean(1)

    def accuracies(self, logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
        return {"acc": (logits[:, :, -1].argmax(-1) == labels).float().mean(1)}

    def counted(self, inputs: Tensor) -> Tensor:
        """CLS's row, (S, B, T)."""
        return torch.arange(inputs.shape[-1], device=inputs.device).eq(inputs.shape[-1] - 1).expand(inputs.shape)

    def final_metrics(
        self,
        model: Transformer,
        weights: list[Tensor],
        inputs: Tensor,
        labels: Tensor,
        generators: Sequence[Generator],
    ) -> list[dict[str, float]]:
        """How much of CLS's attention goes to one token, and whether that token decides the prediction."""
        of_cls = [w[..., -1, :].cpu() for w in weights]  # (S, B, H, T) each

        def predict(tokens: Tensor) -> Tensor:
            # parts whose activations stay in the processor's cache
            parts = tokens.to(inputs.device).split(1000, dim=1)
            return torch.cat([model(part, self.read)[0][:, :, -1].argmax(-1) for part in parts], dim=1).cpu()

        mixing = metrics.label_mixing(predict, of_cls, inputs.cpu(), labels.cpu(), generators)
        sparsity = metrics.collect(metrics.cls_attention, of_cls)
        return [one | other for one, other in zip(sparsity, mixing, strict=True)]
