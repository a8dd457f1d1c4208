"""Attention functions made against attention sinks: what each changes in softmax, beside its formula.

z_j is the scaled dot product of a query with its visible key j, of which there are n; v_j are the values. An outlet
is a way to attend to nothing: such rows sum to less than 1, and what is missing is the outlet's share.

Normalisations as in src/model/attention.py: scores (..., Q, K) and the mask (Q, K), true where a query sees a key
(None: everywhere), to weights (..., Q, K), zero where masked. Learned numbers of a head come as arguments that
broadcast to the scores.
"""

import math

import torch
from torch import Tensor

from src.model.attention import AttentionType, dot, masked, softmax

CLIP = 0.03  # how far clipped softmax stretches below 0


def hidden(scores: Tensor, mask: Tensor | None) -> Tensor:
    """The scores, −∞ where masked."""
    return scores if mask is None else scores.masked_fill(~mask, -math.inf)


def num_visible(scores: Tensor, mask: Tensor | None) -> Tensor:
    """How many keys each query sees: (Q, 1), or (1,) where all see all."""
    return scores.new_full((1,), scores.shape[-1]) if mask is None else mask.sum(-1, keepdim=True).to(scores.dtype)


# With an outlet


def softmax_sink(scores: Tensor, mask: Tensor | None, sink: Tensor) -> Tensor:
    """`e^{z_j} / (e^b + Σ e^z)`, b = `sink` learned for each head (gpt-oss, 2025).

    It is softmax over one more key of score b and value 0, and computed so: torch shifts b with the maximum. As in
    `softmax`, the softmax is not over the last dimension, because torch is faster so.
    """
    outlet = sink.to(scores.dtype).expand(*scores.shape[:-1], 1)
    rows = torch.cat([hidden(scores, mask).mT, outlet.mT], dim=-2)
    return torch.softmax(rows, dim=-2)[..., :-1, :].mT


def softmax1(scores: Tensor, mask: Tensor | None) -> Tensor:
    """`e^{z_j} / (1 + Σ e^z)` (Miller, 2023)."""
    return softmax_sink(scores, mask, scores.new_zeros(1))


# Sparse


def softmax_clipped(scores: Tensor, mask: Tensor | None) -> Tensor:
    """`clip((1 − γ) softmax(z) + γ, 0, 1)` (Bondarenko et al., arXiv 2306.12929).

    γ = −min(0.03, 0.5 / K) for rows of at most K keys: with their −0.03 alone, uniform attention over 35 keys has
    neither weight nor gradient, and training starts there.
    """
    low = -min(CLIP, 0.5 / scores.shape[-1])
    return ((1 - low) * softmax(scores, mask) + low).clamp(0, 1)


def softpick(scores: Tensor, mask: Tensor | None) -> Tensor:
    """`relu(e^{z_j} − 1) / (Σ |e^z − 1| + 1e-8)`, above and below times e^{−m} (Zuhri et al., arXiv 2504.20966).

    m is the largest score, but at least 0: where all are below, all weights are 0 whatever m is, and e^{−m} could
    overflow. A score of 0, as masked keys get here, counts nothing.
    """
    scores = masked(scores, mask)
    largest = scores.detach().amax(-1, keepdim=True).clamp(min=0)
    above = torch.exp(scores - largest) - torch.exp(-largest)
    return above.relu() / (above.abs().sum(-1, keepdim=True) + 1e-8)


def last_of(candidates: Tensor, support: Tensor) -> Tensor:
    """The candidate (..., 1) of the last key of each row's support; NaN for a row of NaN, whose support is empty."""
    return candidates.gather(-1, support.sum(-1, keepdim=True).clamp(min=1) - 1)


def sparsemax_threshold(z: Tensor) -> Tensor:
    """τ (..., 1) with Σ [z − τ]_+ = 1 for rows z (..., K) in descending order."""
    size = torch.arange(1, z.shape[-1] + 1, device=z.device, dtype=z.dtype)
    candidates = (z.cumsum(-1) - 1) / size  # τ if the support were the first 1, 2, … keys
    return last_of(candidates, z > candidates)


def entmax15_threshold(z: Tensor) -> Tensor:
    """τ (..., 1) with Σ [z − τ]_+² = 1 for rows z (..., K) in descending order."""
    size = torch.arange(1, z.shape[-1] + 1, device=z.device, dtype=z.dtype)
    mean = z.cumsum(-1) / size
    variance = z.square().cumsum(-1) / size - mean.square()
    candidates = mean - (1 / size - variance).clamp(min=0).sqrt()
    return last_of(candidates, z >= candidates)


class Entmax(torch.autograd.Function):
    """α-entmax of rows (..., K), `[(α − 1) z − τ]_+^{1/(α − 1)}` with τ so that they sum to 1, for α = 1.5 or 2.

    Exact, by sorting; its Jacobian is diag(g) − g gᵀ/Σg, with g = w^{2 − α} on the support (Peters et al., 2019;
    for α = 2, sparsemax, Martins and Astudillo, 2016).
    """

    @staticmethod
    def forward(ctx, scores: Tensor, alpha: float) -> Tensor:
        z = (alpha - 1) * scores.to(torch.promote_types(scores.dtype, torch.float32))
        # The threshold is at most 1 below the maximum: what is 2 below has no weight, nor have masked keys' −∞.
        z = (z - z.amax(-1, keepdim=True)).clamp(min=-2)
        threshold = sparsemax_threshold if alpha == 2 else entmax15_threshold
        root = (z - threshold(z.sort(-1, descending=True).values)).clamp(min=0)
        weights = root if alpha == 2 else root.square()
        ctx.save_for_backward((root > 0).to(root.dtype) if alpha == 2 else root)
        return weights.to(scores.dtype)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        (g,) = ctx.saved_tensors
        weighted = g * grad
        total = weighted.sum(-1, keepdim=True) / g.sum(-1, keepdim=True)
        return (weighted - g * total).to(grad.dtype), None


def entmax15(scores: Tensor, mask: Tensor | None) -> Tensor:
    """`[z_j / 2 − τ]_+²`, τ so that the row sums to 1 (Peters et al., 2019)."""
    return Entmax.apply(hidden(scores, mask), 1.5)


def sparsemax(scores: Tensor, mask: Tensor | None) -> Tensor:
    """`[z_j − τ]_+`, τ so that the row sums to 1 (Martins and Astudillo, 2016)."""
    return Entmax.apply(hidden(scores, mask), 2)


def relu_mean(scores: Tensor, mask: Tensor | None) -> Tensor:
    """`relu(z_j) / n` (Wortsman et al., arXiv 2309.08586)."""
    return masked(scores.relu(), mask) / num_visible(scores, mask)


# Scaled by how many keys there are


def sigmoid_bias(scores: Tensor, mask: Tensor | None) -> Tensor:
    """`sigmoid(z_j − log n)` (Ramapuram et al., arXiv 2409.04431)."""
    return masked(torch.sigmoid(scores - num_visible(scores, mask).log()), mask)


def ssmax(scores: Tensor, mask: Tensor | None, scale: Tensor) -> Tensor:
    """`softmax(s log(n) z)`, s = `scale` learned for each head (Nakanishi, arXiv 2501.19399)."""
    return softmax(scale * num_visible(scores, mask).log() * scores, mask)


def ssmax_start(longest: int) -> float:
    """1 / log(longest row), with which ssmax is softmax there."""
    return 1 / math.log(max(longest, 2))


def _made(group: str, label: str, colour: str, formula: str, normalise=softmax, **more) -> AttentionType:
    return AttentionType(
        label=label, formula=formula, kernel=dot, normalise=normalise, group=group, colour=colour, **more
    )


# Those of a group are shades of one colour.
MITIGATIONS = {
    "softmax1": _made("outlet", "softmax1", "#08306B", "exp(z) / (1 + Σ exp(z))", softmax1),
    "softmax_sink": _made(
        "outlet",
        "softmax, sink",
        "#2171B5",
        "exp(z) / (exp(b) + Σ exp(z))",
        softmax_sink,
        numbers={"sink": lambda _: 0},
    ),
    # key_bias is `softmax_sink` with a score that depends on the query (Gu et al., arXiv 2410.10781); with a value of
    # its own, the extra key is kv_bias (Sun et al., arXiv 2402.17762).
    "key_bias": _made("outlet", "key bias", "#6BAED6", "softmax over one more key k*, of value 0", extra_key="key"),
    "kv_bias": _made(
        "outlet",
        "key and value bias",
        "#9ECAE1",
        "softmax over one more key k*, of value v*",
        extra_key="key and value",
    ),
    "entmax15": _made("sparse", "entmax 1.5", "#00441B", "[z / 2 − τ]₊², τ so that Σ = 1", entmax15),
    "sparsemax": _made("sparse", "sparsemax", "#238B45", "[z − τ]₊, τ so that Σ = 1", sparsemax),
    "softpick": _made("sparse", "softpick", "#41AB5D", "relu(exp(z) − 1) / Σ |exp(z) − 1|", softpick),
    "softmax_clipped": _made(
        "sparse", "softmax, clipped", "#74C476", "clip((1 − γ) softmax(z) + γ, 0, 1), γ < 0", softmax_clipped
    ),
    "relu_mean": _made("sparse", "relu, mean", "#A1D99B", "relu(z) / number of keys", relu_mean),
    # Gates (Qiu et al., arXiv 2505.06708; Bondarenko et al., arXiv 2306.12929; of values, Bu et al., arXiv 2510.09017):
    # the weights are softmax's.
    "gated_head": _made(
        "gate", "head gate", "#4A1486", "softmax(z); the head's output times sigmoid(w·x + b)", output_gate="head"
    ),
    "gated_element": _made(
        "gate", "element gate", "#807DBA", "softmax(z); the output times sigmoid(W x + b)", output_gate="element"
    ),
    "value_gated": _made(
        "gate", "value gate", "#BCBDDC", "softmax(z); each value v times sigmoid(w·v + b)", value_gate=True
    ),
    "ssmax": _made("scale", "ssmax", "#8C2D04", "softmax(s log(n) z), n keys", ssmax, numbers={"scale": ssmax_start}),
    "sigmoid_bias": _made("scale", "sigmoid, bias", "#EC7014", "sigmoid(z − log n), n keys", sigmoid_bias),
}
