"""Attention weights: what an attention type is, and the twelve that the paper compares (Table 1).

An attention type is a kernel, which scores every query against every key, and a normalisation of each
query's row of scores under the mask, with what else it learns; mixing the values with the weights is the
transformer's business. A new type is an entry, plus its kernel or normalisation if that is new.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

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


@dataclass(frozen=True, kw_only=True)
class AttentionType:
    """Everything that is particular to an attention type.

    Args:
        label: How figures call it. Types of one label are twins, with and without normalisation. One's own type is
            called by its NAME instead, so that figures need not run its file.
        formula: Its weights in a line; z = q·k / √head_dim, Σ over the keys that the query sees.
        kernel: Queries (..., Q, D) and keys (..., K, D) to scores (..., Q, K), of each pair alone, wherever it stands.
        normalise: Scores (..., Q, K), the mask (Q, K) or None, and the type's `numbers` to weights, zero where masked.
        whole: Queries, keys and mask to weights as one function, in the place of kernel and normalise.
        group: Which types stand together in figures.
        colour: In figures; None for the next of a cycle, which one's own types have. Twins have one colour.
        feature_map: Whether queries and keys first pass the layer's own MLP (head_dim → 4 head_dim → head_dim).
        numbers: Learned numbers, one for each head: the argument of `normalise`, and the start as a function of
            the length of the longest row. They come shaped so that they broadcast to the scores.
        extra_key: One more learned key for each head, which every query sees, with value 0 ("key") or a learned
            value ("key and value"). Its weight is no part of the weights (..., Q, K).
        value_gate: Whether each value v is multiplied by sigmoid(v·w + b), w and b learned for each head.
        output_gate: Whether each head's output is multiplied by the sigmoid of a linear map of the block's
            normalised input: to a number for each head, or for each element.
    """

    label: str
    formula: str
    kernel: Callable[[Tensor, Tensor], Tensor] | None = None
    normalise: Callable[..., Tensor] | None = None
    whole: Callable[[Tensor, Tensor, Tensor | None], Tensor] | None = None
    group: str = "own"
    colour: str | None = None
    feature_map: bool = False
    numbers: Mapping[str, Callable[[int], float]] = field(default_factory=dict)
    extra_key: Literal["key", "key and value"] | None = None
    value_gate: bool = False
    output_gate: Literal["head", "element"] | None = None

    def weights(self, q: Tensor, k: Tensor, mask: Tensor | None = None, **numbers: Tensor) -> Tensor:
        """Weights (..., Q, K) of queries (..., Q, D) on keys (..., K, D).

        `mask` (Q, K) is true where a query sees a key; None lets every query see every key. With a feature
        map, q and k are its outputs.
        """
        if self.whole is not None:
            return self.whole(q, k, mask)
        return self.normalise(self.kernel(q, k), mask, **numbers)

    @property
    def normalised(self) -> bool:
        return self.normalise is not masked


def _paper(label: str, kernel, normalise, formula: str, colour: str, **more) -> AttentionType:
    kind = {"kernel": kernel, "normalise": normalise, "group": "paper"} | more
    return AttentionType(label=label, formula=formula, colour=colour, **kind)


BLUE, ORANGE, GREEN, PINK, YELLOW, SKY, GREY = (  # Okabe-Ito, safe for colour blindness
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#666666",
)  # fmt: skip
_FEATURES = "(elu(q) + 1)·(elu(k) + 1)"
PAPER = {
    "softmax": _paper("softmax", dot, softmax, "exp(z) / Σ exp(z)", BLUE),
    "sigmoid_norm": _paper("sigmoid", sigmoid, over_sum, "sigmoid(z) / Σ sigmoid(z)", ORANGE),
    "sigmoid_unnorm": _paper("sigmoid", sigmoid, masked, "sigmoid(z)", ORANGE),
    "linear": _paper("elu · elu", feature_elu, over_sum, f"f / Σ f, f = {_FEATURES}", GREEN),
    "linear_unnorm": _paper("elu · elu", feature_elu, masked, _FEATURES, GREEN),
    "coupled_linear_norm": _paper("elu", coupled_elu, over_sum, "(elu(z) + 1) / Σ (elu(z) + 1)", PINK),
    "coupled_linear_unnorm": _paper("elu", coupled_elu, masked, "elu(z) + 1", PINK),
    "raw_dotproduct_norm": _paper("linear", dot, over_magnitude, "z / max(abs(Σ z), 1)", YELLOW),
    "raw_dotproduct_unnorm": _paper("linear", dot, masked, "z", YELLOW),
    "mlp_norm": _paper("mlp", dot, over_magnitude, "z / max(abs(Σ z), 1), of an MLP's q and k", SKY, feature_map=True),
    "mlp_unnorm": _paper("mlp", dot, masked, "z, of an MLP's q and k", SKY, feature_map=True),
    "uniform": _paper("uniform", ones, over_sum, "1 / number of keys", GREY),
}
