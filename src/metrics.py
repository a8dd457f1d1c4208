"""What is measured of attention weights: pure functions, weights in, numbers out.

Weights are (B, H, Q, K): B sequences, H heads, Q query rows, K keys. Results are per head, (H,), averaged over
sequences. Unnormalised and signed weights are welcome; each docstring says what is done with them.
"""

import math
from collections.abc import Callable

import torch
from torch import Generator, Tensor

EPSILON = 1e-9
NUM_PAIRS = 500  # of sequences mixed for each head


def bos_attention(weights: Tensor) -> dict[str, Tensor]:
    """The share of BOS, the first key, in the attention (B, H, T, T) of an induction model.

    Over the query rows 1 … T − 3 (neither BOS, nor the last context token, nor the query token), with b the
    weight on BOS and r the row's sum:

    - abs_attn_bos: mean b; abs_attn_all: mean r; rel_attn_bos: mean b / (r + 1e-9)
    - rel_attn_bos_global, the sink score: Σb / (Σr + 1e-9) within a sequence, averaged over sequences
    - mag_attn_bos_global: the same with |w| for w, so that it is a share for signed weights too
    """
    rows = weights[:, :, 1 : weights.shape[-1] - 2]
    b, r = rows[..., 0], rows.sum(-1)  # (B, H, rows)
    magnitude = rows.abs()
    return {
        "abs_attn_bos": b.mean((0, 2)),
        "abs_attn_all": r.mean((0, 2)),
        "rel_attn_bos": (b / (r + EPSILON)).mean((0, 2)),
        "rel_attn_bos_global": (b.sum(-1) / (r.sum(-1) + EPSILON)).mean(0),
        "mag_attn_bos_global": (magnitude[..., 0].sum(-1) / (magnitude.sum((-1, -2)) + EPSILON)).mean(0),
    }


def cls_attention(row: Tensor) -> dict[str, Tensor]:
    """How concentrated the CLS row (B, H, K) of each head is.

    - abs_attn_max: mean maximum; abs_attn_sum: mean sum
    - rel_attn_max, the sparsity score: mean of maximum / (sum + 1e-9)
    - mag_attn_max: the same with |w| for w, so that it is a share for signed weights too
    """
    maximum, total, magnitude = row.amax(-1), row.sum(-1), row.abs()
    return {
        "abs_attn_max": maximum.mean(0),
        "abs_attn_sum": total.mean(0),
        "rel_attn_max": (maximum / (total + EPSILON)).mean(0),
        "mag_attn_max": (magnitude.amax(-1) / (magnitude.sum(-1) + EPSILON)).mean(0),
    }


def entropy(weights: Tensor) -> Tensor:
    """Entropy in nats of each row (..., K) → (...), of |w| renormalised to sum 1."""
    p = weights.abs()
    p = p / (p.sum(-1, keepdim=True) + EPSILON)
    return -torch.special.xlogy(p, p).sum(-1)


def row_entropy(row: Tensor) -> Tensor:
    """Mean entropy of fully visible rows (B, H, K), as a fraction of log K: (H,)."""
    return entropy(row).mean(0) / math.log(row.shape[-1])


def causal_entropy(weights: Tensor) -> Tensor:
    """Mean entropy of the rows of causal weights (B, H, T, T), each as a fraction of the logarithm of how
    many keys it sees; without the first row, which sees one: (H,)."""
    visible = torch.arange(2, weights.shape[-1] + 1, device=weights.device)
    return (entropy(weights[:, :, 1:]) / visible.log()).mean((0, 2))


def by_head(name: str, layers: list[Tensor]) -> dict[str, float]:
    """{layer}_{head}_{name} of one (H,) tensor for each layer."""
    return {
        f"{layer}_{head}_{name}": value
        for layer, values in enumerate(layers)
        for head, value in enumerate(values.tolist())
    }


def collect(metric: Callable[[Tensor], dict[str, Tensor]], layers: list[Tensor]) -> dict[str, float]:
    """`metric` of each layer's weights, named {layer}_{head}_{name}."""
    results = [metric(weights) for weights in layers]
    return {key: value for name in results[0] for key, value in by_head(name, [r[name] for r in results]).items()}


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
    generator: Generator,
    num_pairs: int = NUM_PAIRS,
) -> dict[str, float]:
    """Whether the token with a head's largest CLS weight decides the prediction (flip rate).

    For each head and pair of sequences A, B of different labels: the top token of A among the others of B
    (mixed A), and of B among the others of A (mixed B), shuffled; how often is A's (B's) label predicted?
    All heads and pairs in one call of `predict`.

    rows: each layer's CLS row (B, H, K) over inputs (B, K), whose last column is CLS; labels (B,); predict:
    sequences to labels. Keys `mixing/{layer}_{head}/…` hold the rates, their mean, and the counts behind.
    """
    heads = [f"{layer}_{head}" for layer, row in enumerate(rows) for head in range(row.shape[1])]
    content, cls = inputs[:, :-1], inputs[:, -1:]
    top = torch.cat(rows, dim=1)[..., :-1].argmax(-1).T  # (heads, B): place of each head's top token
    num_labels = len(labels.unique())
    num_pairs = num_pairs if num_labels > 1 else 0
    if not num_pairs:
        return {}
    a, b = (p.view(len(heads), num_pairs) for p in draw_pairs(labels, len(heads) * num_pairs, generator))

    def predictions(one: Tensor, other: Tensor) -> Tensor:
        """The label of the top token of `one` among the tokens of `other`: (heads, pairs), true if one's."""
        top_one, top_other = top.gather(1, one).flatten(), top.gather(1, other).flatten()
        one, other = one.flatten(), other.flatten()
        token = content[one].gather(1, top_one[:, None])[:, 0]
        mixed = torch.cat([mix(token, content[other], top_other, generator), cls[other]], dim=1)
        return (predict(mixed) == labels[one]).view(len(heads), num_pairs)

    won_a, won_b = predictions(a, b).sum(1).tolist(), predictions(b, a).sum(1).tolist()
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
