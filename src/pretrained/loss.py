"""Next-token loss, prompt by prompt."""

import numpy as np
import torch
from torch import Tensor

from src.pretrained.statistics import ratio_mean

ROWS = 16


def prompt_losses(logits: Tensor, ids: Tensor, valid: Tensor, prefix: int) -> tuple[Tensor, Tensor]:
    """Each prompt's summed cross-entropy in nats (B,), and of how many tokens (B,), of logits (B, T, V).

    Predicted are the tokens of the text but its first, so that the `prefix` tokens put before it, or none, leave
    the same ones to predict.
    """
    scored = valid[:, 1:].clone()
    scored[:, :prefix] = False
    losses = torch.stack([next_losses(rows[:-1], later[1:]) for rows, later in zip(logits, ids, strict=True)])
    return losses.masked_fill(~scored, 0).double().sum(1), scored.sum(1)


def next_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of each row of logits (T, V): (T,). A few rows at a time: logits in float32 are large."""
    parts = zip(logits.split(ROWS), targets.split(ROWS), strict=True)
    return torch.cat([rows.float().logsumexp(-1) - rows.gather(1, own[:, None])[:, 0].float() for rows, own in parts])


class Losses:
    """The losses of all prompts. `arrays` is all of its state, for a restart."""

    def __init__(self, num_prompts: int):
        self.arrays = {"loss_sum": np.zeros(num_prompts), "loss_tokens": np.zeros(num_prompts)}

    def add(self, start: int, sums: Tensor, counts: Tensor) -> None:
        rows = slice(start, start + len(sums))
        self.arrays["loss_sum"][rows], self.arrays["loss_tokens"][rows] = sums.cpu().numpy(), counts.cpu().numpy()

    def results(self) -> dict[str, np.ndarray]:
        """next_token_loss, its standard error over prompts, and the sum and number of tokens of each prompt (P,)."""
        mean, error = ratio_mean(self.arrays["loss_sum"], self.arrays["loss_tokens"])
        return {"next_token_loss": mean, "next_token_loss_se": error} | self.arrays
