"""What is measured of attention weights: pure functions, weights in, numbers out.

Weights are (..., B, H, Q, K): B sequences, H heads, Q query rows, K keys, and before them any dimensions, as the
members of a stack. Results are per head, (..., H), averaged over sequences. Unnormalised and signed weights are
welcome; each docstring says what is done with them.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Generator, Tensor

EPSILON = 1e-9
NUM_PAIRS = 500  # of sequences mixed for each head


def average(rows: Tensor, counted: Tensor | None) -> Tensor:
    """The mean of a number of each query row (..., B, H, Q) over sequences and the rows that are counted: (..., H).

    counted (..., B, Q) is true for those; None: all.
    """
    if counted is None:
        return rows.mean((-3, -1))
    counted = counted.unsqueeze(-2).to(rows.dtype)
    return (rows * counted).sum((-3, -1)) / counted.sum((-3, -1)).clamp(min=1)


def bos_attention(weights: Tensor, counted: Tensor | None = None) -> dict[str, Tensor]:
    """The share of BOS, the first key, in causal attention (..., B, H, T, T).

    Over the query rows that are `counted` (..., B, T), by default 1 … T − 3: those of an induction model that are
    neither BOS, nor the last context token, nor the query token. With b the weight on BOS and r the row's sum:

    - abs_attn_bos: mean b; abs_attn_all: mean r; rel_attn_bos: mean b / (r + 1e-9)
    - rel_attn_bos_global, the sink score: Σb / (Σr + 1e-9) within a sequence, averaged over sequences
    - mag_attn_bos_global: the same with |w| for w, so that it is a share for signed weights too
    """
    rows = weights[..., 1 : weights.shape[-1] - 2, :] if counted is None else weights * counted[..., None, :, None]
    b, r = rows[..., 0], rows.sum(-1)  # (..., B, H, rows)
    magnitude = rows.abs()
    return {
        "abs_attn_bos": average(b, counted),
        "abs_attn_all": average(r, counted),
        "rel_attn_bos": average(b / (r + EPSILON), counted),
        "rel_attn_bos_global": (b.sum(-1) / (r.sum(-1) + EPSILON)).mean(-2),
        "mag_attn_bos_global": (magnitude[..., 0].sum(-1) / (magnitude.sum((-1, -2)) + EPSILON)).mean(-2),
    }


def cls_attention(row: Tensor) -> dict[str, Tensor]:
    """How concentrated the CLS row (..., B, H, K) of each head is.

    - abs_attn_max: mean maximum; abs_attn_sum: mean sum
    - rel_attn_max, the sparsity score: mean of maximum / (sum + 1e-9)
    - mag_attn_max: the same with |w| for w, so that it is a share for signed weights too
    """
    maximum, total, magnitude = row.amax(-1), row.sum(-1), row.abs()
    return {
        "abs_attn_max": maximum.mean(-2),
        "abs_attn_sum": total.mean(-2),
        "rel_attn_max": (maximum / (total + EPSILON)).mean(-2),
        "mag_attn_max": (magnitude.amax(-1) / (magnitude.sum(-1) + EPSILON)).mean(-2),
    }


def entropy(weights: Tensor) -> Tensor:
    """Entropy in nats of each row (..., K) → (...), of |w| renormalised to sum 1; NaN of a row without weight, which is
    neither spread nor peaked."""
    p = weights.abs()
    p = p / p.sum(-1, keepdim=True)
    return -torch.special.xlogy(p, p).sum(-1)


def row_entropy(row: Tensor) -> Tensor:
    """Mean entropy of fully visible rows (..., B, H, K) that have weight, as a fraction of log K: (..., H)."""
    return entropy(row).nanmean(-2) / math.log(row.shape[-1])


def causal_entropy(weights: Tensor) -> Tensor:
    """Mean entropy of the rows of causal weights (..., B, H, T, T) that have weight, each as a fraction of the
    logarithm of how many keys it sees; without the first row, which sees one: (..., H)."""
    visible = torch.arange(2, weights.shape[-1] + 1, device=weights.device)
    return (entropy(weights[..., 1:, :]) / visible.log()).nanmean((-3, -1))


def sink_place(weights: Tensor, counted: Tensor) -> dict[str, Tensor]:
    """Where attention (..., B, H, Q, K) goes to in the query rows that are counted (..., B, Q), (..., H) each.

    - sink_place: the key with the largest mean share; sink_share: that share. A row's shares are |w| / Σ|w|, so that a
      sink is seen wherever it is; a key that later queries alone can see has no share in earlier rows
    - row_sum: mean Σw; less than 1 where a function has an outlet that is used
    """
    magnitude = weights.abs()
    shares = magnitude / (magnitude.sum(-1, keepdim=True) + EPSILON)
    of_rows = counted.to(shares.dtype)[..., None, :, None]  # (..., B, 1, Q, 1)
    of_keys = (shares * of_rows).sum((-4, -2)) / of_rows.sum((-4, -2)).clamp(min=1)  # (..., H, K)
    share, place = of_keys.max(-1)
    return {"sink_place": place.to(share), "sink_share": share, "row_sum": average(weights.sum(-1), counted)}


def value_drain(values: Tensor, anchor: int) -> Tensor:
    """‖v‖ at the position `anchor`, over its mean over all positions of the sequence: values (..., B, H, T, D),
    averaged over sequences to (..., H). Below 0.2 attending there is a way to do nothing, near 1 it is not (arXiv
    2606.08105)."""
    norms = values.norm(dim=-1)
    return (norms[..., anchor] / (norms.mean(-1) + EPSILON)).mean(-2)


def residual_peaks(states: Tensor, anchor: int) -> dict[str, Tensor]:
    """How uneven the residual stream (..., B, T, C) is, of each sequence, averaged: (...) each.

    - residual_peak: ‖h‖ at the position `anchor`, over its mean over positions
    - residual_max_median: the largest |h| of all numbers over the median |h|
    - residual_kurtosis: E (h − E h)⁴ / (E (h − E h)²)² of all numbers; 3 for a Gaussian
    """
    norms, magnitude = states.norm(dim=-1), states.abs().flatten(-2)
    centred = (states - states.mean((-2, -1), keepdim=True)).flatten(-2)
    kurtosis = centred.pow(4).mean(-1) / (centred.square().mean(-1).square() + EPSILON**2)
    return {
        "residual_peak": (norms[..., anchor] / (norms.mean(-1) + EPSILON)).mean(-1),
        "residual_max_median": (magnitude.amax(-1) / (magnitude.median(-1).values + EPSILON)).mean(-1),
        "residual_kurtosis": kurtosis.mean(-1),
    }


def order_kept(rows: Tensor) -> Tensor:
    """The share of pairs of keys whose weights have, at each step, the order of the last step: rows (steps, ..., K)
    → (steps,). That it is kept from the start is Theorem 3.2a of the paper, of the flow."""
    first, second = torch.triu_indices(rows.shape[-1], rows.shape[-1], 1, device=rows.device)
    greater = rows[..., first] > rows[..., second]  # (steps, ..., pairs)
    return (greater == greater[-1]).float().flatten(1).mean(1)


def collect(metric: Callable[[Any], dict[str, Tensor]], layers: list[Any]) -> list[dict[str, float]]:
    """`metric` of each layer, its weights (S, B, H, Q, K) say, for each member named {layer}_{head}_{name}."""
    results = [metric(layer) for layer in layers]
    keys = [
        f"{layer}_{head}_{name}"
        for name in results[0]
        for layer, result in enumerate(results)
        for head in range(result[name].shape[1])
    ]
    values = torch.cat([result[name] for name in results[0] for result in results], dim=1)  # one wait for a GPU
    return [dict(zip(keys, row, strict=True)) for row in values.tolist()]


def draw_pairs(labels: Tensor, num: int, generator: Generator) -> tuple[Tensor, Tensor]:
    """`num` pairs of sequences, as indices into labels (B,): two different labels, uniform among those that
    occur, and a uniform sequence of each."""
    present = labels.unique()
    a = torch.randint(len(present), (num,), generator=generator)
    b = (a + torch.randint(1, len(present), (num,), generator=generator)) % len(present)
    counts = torch.bincount(labels)[present]
    starts, order = counts.cumsum(0) - counts, labels.argsort(stable=True)

    def one_of(label: Tensor) -> Tensor:
        within = (torch.rand(num, generator=generator, dtype=torch.float64) * counts[label]).long()
        return order[starts[label] + within]

    return one_of(a), one_of(b)


def mix(top: Tensor, other: Tensor, other_top: Tensor, generator: Generator) -> Tensor:
    """The tokens `top` (N,) with the rows of `other` (N, n) less those at `other_top` (N,), shuffled: (N, n)."""
    mixed = other.scatter(1, other_top[:, None], top[:, None])
    return mixed.gather(1, torch.rand(mixed.shape, generator=generator).argsort(1))


def label_mixing(
    predict: Callable[[Tensor], Tensor],
    rows: list[Tensor],
    inputs: Tensor,
    labels: Tensor,
    generators: Sequence[Generator],
    num_pairs: int = NUM_PAIRS,
) -> list[dict[str, float]]:
    """Whether the token with a head's largest CLS weight decides the prediction (flip rate), of each member.

    For each head and pair of sequences A, B of different labels: the top token of A among the others of B
    (mixed A), and of B among the others of A (mixed B), shuffled; how often is A's (B's) label predicted?
    All members, heads and pairs in one call of `predict`.

    rows: each layer's CLS row (S, B, H, K) over inputs (S, B, K), whose last column is CLS; labels (S, B);
    predict: sequences (S, N, K) to labels (S, N). Keys `mixing/{layer}_{head}/…` hold the rates, their mean, and
    the counts behind; none for a member all of whose labels are one.
    """
    heads = [f"{layer}_{head}" for layer, row in enumerate(rows) for head in range(row.shape[2])]
    top = torch.cat(rows, dim=2)[..., :-1].argmax(-1).mT  # (S, heads, B): place of each head's top token
    mixed = [mixed_pairs(*member, num_pairs) for member in zip(top, inputs, labels, generators, strict=True)]
    tokens, expected = (torch.stack(parts) for parts in zip(*mixed, strict=True))  # (S, 2, heads, pairs, K), no K
    predicted = predict(tokens.flatten(1, 3)).view(expected.shape)
    counts = (predicted == expected).sum(-1)  # (S, 2, heads)
    return [
        mixing_rates(heads, *won.tolist(), num_pairs) if len(of_member.unique()) > 1 else {}
        for won, of_member in zip(counts, labels, strict=True)
    ]


def mixed_pairs(
    top: Tensor, inputs: Tensor, labels: Tensor, generator: Generator, num_pairs: int
) -> tuple[Tensor, Tensor]:
    """The mixed sequences (2, heads, pairs, K) of one member, mixed A and mixed B, and the label (2, heads, pairs)
    of each one's top token. Where there are no two labels to mix, sequences as they are."""
    H, K = len(top), inputs.shape[1]
    if len(labels.unique()) == 1:
        return inputs[:1].expand(2, H, num_pairs, K), labels[:1].expand(2, H, num_pairs)
    a, b = (p.view(H, num_pairs) for p in draw_pairs(labels, H * num_pairs, generator))
    content, cls = inputs[:, :-1], inputs[:, -1:]

    def top_among(one: Tensor, other: Tensor) -> Tensor:
        """The top token of `one` among the tokens of `other`, for indices (heads, pairs): (heads, pairs, K)."""
        top_one, top_other = top.gather(1, one).flatten(), top.gather(1, other).flatten()
        one, other = one.flatten(), other.flatten()
        token = content[one].gather(1, top_one[:, None])[:, 0]
        mixed = torch.cat([mix(token, content[other], top_other, generator), cls[other]], dim=1)
        return mixed.view(H, num_pairs, K)

    return torch.stack([top_among(a, b), top_among(b, a)]), torch.stack([labels[a], labels[b]])


def mixing_rates(heads: list[str], won_a: list[int], won_b: list[int], num_pairs: int) -> dict[str, float]:
    """How often mixed A (mixed B) was predicted to be what its top token is, of `num_pairs` for each head."""
    results = {}
    for head, count_a, count_b in zip(heads, won_a, won_b, strict=True):
        rate_a, rate_b = count_a / num_pairs, count_b / num_pairs
        results |= {
            f"mixing/{head}/top1_dominance_rate_a": rate_a,
            f"mixing/{head}/top1_dominance_rate_b": rate_b,
            f"mixing/{head}/avg_top1_dominance_rate": (rate_a + rate_b) / 2,
            f"mixing/{head}/mixed_a_predicts_top1_label": count_a,
            f"mixing/{head}/mixed_b_predicts_top1_label": count_b,
            f"mixing/{head}/total_pairs": num_pairs,
        }
    return results
