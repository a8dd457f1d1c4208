"""In-context recall (Section 4.1)."""

from collections.abc import Sequence

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from src import metrics
from src.errors import require
from src.model.transformer import EVERYWHERE, Transformer
from src.tasks.base import HeadScore, Solved, Task, share_above
from src.tasks.sequences import sample_distinct

SINK = 0.9  # sink score above which a head is a sink


class Induction(Task):
    """In-context recall (Section 4.1): find an earlier occurrence of the query and say what followed it.

    Ids `BOS (0), x₁ … xₙ, y, z` with n = seq_length − 3 distinct xᵢ, `y = x_r` for a uniform r, and z what
    followed x_r in `x₁ … xₙ, y`. With shift_query_token the query y (and so z for r = n) is the token's
    double, `vocab_size` higher. Inputs are all but the last id, targets all but the first.
    """

    defaults = {
        "vocab_size": 50,
        "seq_length": 13,
        "num_train": 100_000,
        "positional_type": "concat",
        "aux_loss_weight": 0.2,
        "shift_query_token": True,
    }
    settings = ("lr", "num_layers", "num_heads", "aux_loss_weight", "shift_query_token", "positional_type")
    accuracy = "eval/acc_induction"
    solved = Solved("eval/acc_induction", above=0.95, words="accuracy")
    scores = {
        "sink_share": HeadScore(
            r"1_\d+_rel_attn_bos_global",
            f"share of second-layer heads with sink score > {SINK}",
            share_above(SINK),
            solved_only=True,
        )
    }
    words = {
        "aux_loss_weight": "aux",
        ("shift_query_token", True): "shift",
        ("shift_query_token", False): "no shift",
    }
    causal = True

    @classmethod
    def check(cls, config) -> None:
        length, vocab = config.seq_length, config.vocab_size
        require(length >= 5, f"seq_length={length} must be at least 5 for task=induction")
        require(
            length - 3 <= vocab - 1,
            f"seq_length={length} needs {length - 3} distinct context tokens, but vocab_size={vocab} has {vocab - 1}; "
            "lower seq_length or raise vocab_size",
        )

    def __init__(self, *members):
        config = members[0]
        self.vocab_size, self.num_context = config.vocab_size, config.seq_length - 3
        self.shift = config.vocab_size if config.shift_query_token else 0
        self.aux_loss_weight = torch.tensor([member.aux_loss_weight for member in members], dtype=torch.float64)
        self.num_tokens = self.num_classes = config.vocab_size + self.shift
        self.num_positions = config.seq_length - 1
        self.auxiliary = bool(self.aux_loss_weight.any())
        self.read = EVERYWHERE if self.auxiliary else slice(-1, None)

    def sequences(self, num: int, generator: Generator) -> tuple[Tensor, Tensor]:
        """Inputs and targets, each (num, seq_length − 1)."""
        x = 1 + sample_distinct(num, self.vocab_size - 1, self.num_context, generator)
        r = torch.randint(self.num_context, (num, 1), generator=generator)
        y = x.gather(1, r) + self.shift
        z = torch.cat([x, y], dim=1).gather(1, r + 1)
        ids = torch.cat([torch.zeros_like(y), x, y, z], dim=1)
        return ids[:, :-1], ids[:, 1:]

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy at the last position + aux_loss_weight × its mean over the others: (S,).

        logits (S, B, R, classes) at the positions read, targets (S, B, T).
        """
        targets = targets[..., -logits.shape[2] :]
        at_each = F.cross_entropy(logits.flatten(0, 2), targets.flatten(), reduction="none")
        at_each = at_each.view(targets.shape).mean(1)  # (S, R)
        if not self.auxiliary:
            return at_each[:, -1]
        self.aux_loss_weight = self.aux_loss_weight.to(at_each)  # kept, so that a GPU is sent it once
        return at_each[:, -1] + self.aux_loss_weight * at_each[:, :-1].mean(1)

    def accuracies(self, logits: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """acc_all over all positions and acc_induction at the last, (S,) each; logits (S, B, T, classes), targets
        (S, B, T)."""
        right = (logits.argmax(-1) == targets).float()
        return {"acc_all": right.mean((1, 2)), "acc_induction": right[..., -1].mean(1)}

    def counted(self, inputs: Tensor) -> Tensor:
        """All query rows but BOS's, the last context token's and the query token's, (S, B, T)."""
        rows = torch.arange(inputs.shape[-1], device=inputs.device)
        return ((rows > 0) & (rows < inputs.shape[-1] - 2)).expand(inputs.shape)

    def final_metrics(
        self,
        model: Transformer,
        weights: list[Tensor],
        inputs: Tensor,
        targets: Tensor,
        generators: Sequence[Generator],
    ) -> list[dict[str, float]]:
        """The share of attention that goes to BOS, per layer and head."""
        return metrics.collect(metrics.bos_attention, weights)
