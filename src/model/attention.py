"""Attention weights: the types that the paper compares (Table 1), in one registry.

An attention type is a kernel, which scores every query against every key, and a normalisation of each
query's row of scores under the mask; mixing the values with the weights is the transformer's business. A new
type is a line in `ATTENTION`, plus its kernel or normalisation if that is new.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import elu

EPSILON = 1e-9  # keeps the sum of an (almost) empty row out of the denominator

# Kernels: queries (..., Q, D) and keys (..., K, D) to scores (..., Q, K).


def dot(q: Tensor, k: Tensor) -> Tensor:
    """Scaled dot product, `q·k / √head_dim`."""
    return (q / math.sqrt(q.shape[-1])) @ k.mT


def sigmoid(q: Tensor, k: Tensor) -> Tensor:
    return torch.sigmoid(dot(q, k))


def feature_elu(q: Tensor, k: Tensor) -> Tensor:
    """Linear attention's positive features: `(elu(q) + 1)·(elu(k) + 1)`, without the scale."""
    return (elu(q) + 1) @ (elu(k) + 1).mT


def coupled_elu(q: Tensor, k: Tensor) -> Tensor:
    return elu(dot(q, k)) + 1


def ones(q: Tensor, k: Tensor) -> Tensor:
    return q.new_ones((*q.shape[:-1], k.shape[-2]))


# Normalisations: scores (..., Q, K) and the mask (Q, K), true where a query sees a key (None: everywhere),
# to weights (..., Q, K), zero where masked.


def masked(scores: Tensor, mask: Tensor | None) -> Tensor:
    """No normalisation: the scores themselves."""
    return scores if mask is None else scores * mask


def over_sum(scores: Tensor, mask: Tensor | None) -> Tensor:
    """Positive scores, divided by the row's sum."""
    scores = masked(scores, mask)
    return scores / (scores.sum(-1, keepdim=True) + EPSILON)


def over_magnitude(scores: Tensor, mask: Tensor | None) -> Tensor:
    """Signed scores, divided by the magnitude of the row's sum where that exceeds one."""
    scores = masked(scores, mask)
    return scores / scores.sum(-1, keepdim=True).abs().clamp(min=1)


def softmax(scores: Tensor, mask: Tensor | None) -> Tensor:
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf)
    # Over the last dimension torch's CPU kernel handles short rows one by one; over any other it is
    # vectorised across rows, which is several times faster even with the copy.
    return torch.softmax(scores.mT.contiguous(), dim=-2).mT


@dataclass(frozen=True)
class AttentionType:
    """A kernel, a normalisation, and how figures call the kernel.

    With `feature_map`, queries and keys first pass the layer's own MLP (head_dim → 4 head_dim → head_dim).
    """

    kernel: Callable[[Tensor, Tensor], Tensor]
    normalise: Callable[[Tensor, Tensor | None], Tensor]
    label: str
    feature_map: bool = False

    def weights(self, q: Tensor, k: Tensor, mask: Tensor | None = None) -> Tensor:
        """Weights (..., Q, K) of queries (..., Q, D) on keys (..., K, D).

        `mask` (Q, K) is true where a query sees a key; None lets every query see every key. With a feature
        map, q and k are its outputs.
        """
        return self.normalise(self.kernel(q, k), mask)

    @property
    def normalised(self) -> bool:
        return self.normalise is not masked


ATTENTION = {
    "softmax": AttentionType(dot, softmax, "softmax"),
    "sigmoid_norm": AttentionType(sigmoid, over_sum, "sigmoid"),
    "sigmoid_unnorm": AttentionType(sigmoid, masked, "sigmoid"),
    "linear": AttentionType(feature_elu, over_sum, "elu · elu"),
    "linear_unnorm": AttentionType(feature_elu, masked, "elu · elu"),
    "coupled_linear_norm": AttentionType(coupled_elu, over_sum, "elu"),
    "coupled_linear_unnorm": AttentionType(coupled_elu, masked, "elu"),
    "raw_dotproduct_norm": AttentionType(dot, over_magnitude, "linear"),
    "raw_dotproduct_unnorm": AttentionType(dot, masked, "linear"),
    "mlp_norm": AttentionType(dot, over_magnitude, "mlp", feature_map=True),
    "mlp_unnorm": AttentionType(dot, masked, "mlp", feature_map=True),
    "uniform": AttentionType(ones, over_sum, "uniform"),
}
