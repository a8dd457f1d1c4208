"""What is measured of a pretrained model, prompt by prompt, so that means have standard errors.

Attention weights are (B, N, Q, K): B prompts, N heads, Q = K = T positions. Every quantity is summed over a
prompt's queries in float64 and kept for each prompt; a mean is Σ sums / Σ queries, so that each token counts
equally, and does not depend on batches or padding. Attention is averaged over queries that are no padding.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from src.metrics import EPSILON

SINK_LENGTH = 64  # T of Gu et al. (ICLR 2025)
MASSIVE_MAGNITUDE, MASSIVE_RATIO = 100, 1000  # Sun et al. (2024)
TOP = 5  # activations kept of each prompt and layer
MAP_LENGTH = 64  # positions of the attention maps kept
PROFILE_LENGTH = 64  # keys of the profile over positions
ROWS = 64  # queries reduced at a time; causal rows then skip most of the keys that they can't see
SMALLEST = 1e-37  # above where float32 loses digits

# Averages over queries of: the row's largest weight (the published `max_proportion`, which is no proportion);
# the same as a share of the row's sum (the sparsity score as the paper's text defines it); the shares of the
# first key, of other keys that are delimiters, and of the rest; the sum; entropy in nats of the row renormalised
# to 1; the same over the logarithm of how many keys the row sees; exp(entropy), the effective number of keys; and
# α₁ of Gu et al.
QUANTITIES = (
    "max_proportion",
    "max_share",
    "first_token_proportion",
    "delimiter_proportion",
    "other_proportion",
    "row_sum",
    "entropy",
    "normalised_entropy",
    "effective_keys",
    "alpha_1",
)
# Of a prompt's heads: the first token's value and key norms over the mean norms of its other tokens'.
NORMS = ("value_norm_ratio", "key_norm_ratio")
# Of a prompt's residual stream: norm of the first token's state, mean norm of the others', and the kurtosis of a
# token's entries (3 if they are normal), averaged over tokens.
STATES = ("norm_first", "norm_others", "kurtosis")


class Heads(NamedTuple):
    """What attention is made of: weights (B, N, Q, K); keys and values (B, M, T, H) of M groups of heads, if known."""

    weights: Tensor
    keys: Tensor | None = None
    values: Tensor | None = None


def query_quantities(weights: Tensor, delimiter: Tensor, causal: bool = False) -> dict[str, Tensor]:
    """Each query's quantities (B, N, Q) of weights (B, N, Q, K), for keys that are delimiters (B, K) or not.

    causal: weights of keys after the query are 0, and are not looked at.
    """
    rows = [row_quantities(block) for prompt in weights for block in blocks(prompt, causal)]
    num = len(rows) // len(weights)  # blocks of a prompt
    sums = [torch.stack([torch.cat(x[i : i + num], 1) for i in range(0, len(x), num)]) for x in zip(*rows, strict=True)]
    maximum, total, entr = sums  # each (B, N, Q)
    # with p = w / S: -Σ p log p = log S - Σ w log w / S; a row of zeros has none
    nats = (total.clamp(min=EPSILON).log() + entr / total.clamp(min=EPSILON)).clamp(min=0)
    first, whole = weights[..., 0].float(), total + EPSILON
    delimiters = delimiter_sums(weights, delimiter)
    return {
        "max_proportion": maximum,
        "max_share": maximum / whole,
        "first_token_proportion": first / whole,
        "delimiter_proportion": delimiters / whole,
        "other_proportion": (total - first - delimiters) / whole,
        "row_sum": total,
        "entropy": nats,
        "effective_keys": nats.exp(),
    }


def blocks(weights: Tensor, causal: bool) -> Iterator[Tensor]:
    """Rows of one prompt's weights (N, Q, K), few enough that a processor keeps them at hand."""
    for start in range(0, weights.shape[1], ROWS):
        yield weights[:, start : start + ROWS, : start + ROWS if causal else None]


def row_quantities(weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Each row's largest weight, sum, and -Σ w log w, of weights (..., K)."""
    positive = weights.float().clamp(min=SMALLEST)  # logarithms of smaller numbers take many times as long
    return positive.amax(-1), weights.sum(-1, dtype=torch.float32), -positive.log().mul_(positive).sum(-1)


def delimiter_sums(weights: Tensor, delimiter: Tensor) -> Tensor:
    """Each row's weight on keys that are delimiters (B, K), but for the first, which is a class of its own."""
    b, n, q, k = weights.shape
    later = delimiter.clone()
    later[:, 0] = False
    return torch.bmm(weights.reshape(b, n * q, k), later[:, :, None].to(weights.dtype)).view(b, n, q).float()


def attention_sums(quantities: dict[str, Tensor], valid: Tensor, seen: Tensor, causal: bool) -> tuple[Tensor, Tensor]:
    """Sums over queries of the `QUANTITIES` S, (B, S, N), and how many queries they are over, (B, S); float64.

    quantities (B, N, Q) of `query_quantities`; valid (B, Q): queries that are no padding; seen (B, Q): how many
    keys a row sees. Normalised entropy leaves out rows that see one key. α₁ is over the first 64 queries, in
    prompts that have as many; where attention is not causal rows cannot be cut to 64 keys, and it is over all.
    """
    several = valid & (seen > 1)
    if causal:
        early = torch.arange(valid.shape[1], device=valid.device) < SINK_LENGTH
        sink = valid & early & (valid[:, :SINK_LENGTH].sum(1, keepdim=True) == SINK_LENGTH)
    else:
        sink = valid
    quantities = quantities | {
        "normalised_entropy": quantities["entropy"] / seen.clamp(min=2).log()[:, None],
        "alpha_1": quantities["first_token_proportion"],
    }
    over = {"normalised_entropy": several, "alpha_1": sink}
    masks = [over.get(name, valid) for name in QUANTITIES]
    sums = [
        quantities[name].double().masked_fill(~mask[:, None], 0).sum(-1)
        for name, mask in zip(QUANTITIES, masks, strict=True)
    ]
    return torch.stack(sums, 1), torch.stack(masks, 1).sum(-1).double()


def key_profile(weights: Tensor, total: Tensor, valid: Tensor, causal: bool) -> tuple[Tensor, Tensor]:
    """Of each prompt the α_k of its first `PROFILE_LENGTH` keys, (B, N, K), and which of them count, (B, K).

    α_k is the mean over queries i ≥ k (all, where attention is not causal) of key k's share of row i (Gu et al.,
    2025); total (B, N, Q): the rows' sums. A key counts in prompts of at least twice as many tokens as precede
    and include it, so that enough queries see it.
    """
    keys = torch.arange(min(PROFILE_LENGTH, weights.shape[-1]), device=weights.device)
    scale = valid[:, None] / (total + EPSILON)  # (B, N, Q)
    sums = (scale[:, :, None] @ weights[..., : len(keys)].float())[:, :, 0]  # (B, N, K)
    length = valid.sum(1, keepdim=True)
    queries = (length - keys if causal else length.expand(-1, len(keys))).clamp(min=1)
    return sums / queries[:, None], length >= 2 * (keys + 1)


def norm_ratios(vectors: Tensor | None, valid: Tensor, num_heads: int) -> Tensor:
    """Norm of the first token's vector over the mean norm of the prompt's others, (B, N); NaN where there are none.

    vectors: values or keys (B, M, T, H) of M groups of heads, or None where the model does not show them.
    """
    if vectors is None:
        return torch.full((len(valid), num_heads), float("nan"), device=valid.device)
    norms = vectors.float().norm(dim=-1)  # (B, M, T)
    others = valid[:, None, 1:]
    mean = (norms[..., 1:] * others).sum(-1) / others.sum(-1)
    return (norms[..., 0] / mean).repeat_interleave(num_heads // norms.shape[1], 1)


def state_quantities(hidden: Tensor, valid: Tensor) -> Tensor:
    """The `STATES` of each prompt's residual stream `hidden` (B, T, D): (B, 3). NaN if there is no other token."""
    mean = hidden.mean(-1)
    square = (hidden - mean[..., None]).square_()
    variance, fourth = square.mean(-1), torch.linalg.vecdot(square, square) / hidden.shape[2]  # (B, T)
    norms = ((variance + mean.square()) * hidden.shape[2]).sqrt()
    kurtosis = fourth / variance.square().clamp(min=1e-30)
    others, count = valid[:, 1:], valid.sum(1)
    columns = norms[:, 0], (norms[:, 1:] * others).sum(1) / others.sum(1), (kurtosis * valid).sum(1) / count
    return torch.stack(columns, 1)


def massive_entries(hidden: Tensor, median: Tensor, valid: Tensor) -> Tensor:
    """Which entries of `hidden` (B, T, D) are massive activations (Sun et al., 2024): more than 100 and at least
    1000 times the prompt's median magnitude (B,); valid (B, T)."""
    magnitude = hidden.abs()
    limit = (MASSIVE_RATIO * median)[:, None, None]
    return (magnitude > MASSIVE_MAGNITUDE) & (magnitude >= limit) & valid[..., None]


def median_magnitudes(magnitude: Tensor, valid: Tensor) -> Tensor:
    """Median of each prompt's magnitudes (B, T, D), the lower one of two: (B,)."""
    found = []
    for prompt, length in zip(magnitude.cpu().numpy(), valid.sum(1).tolist(), strict=True):
        entries = prompt[:length].ravel()
        middle = (len(entries) - 1) // 2
        found.append(float(np.partition(entries, middle)[middle]))  # a tenth of the time that torch's median takes
    return torch.tensor(found, device=magnitude.device)


def largest_activations(hidden: Tensor, magnitude: Tensor, valid: Tensor) -> dict[str, Tensor]:
    """The largest entries of each prompt's residual stream `hidden` (B, T, D) at valid positions (B, T).

    magnitude (B, T, D): of its entries. value, position, dimension: (B, TOP), by falling magnitude. Magnitudes
    missing in very small states are 0.
    """
    # the largest entries are in the tokens whose own largest are largest
    tokens = magnitude.amax(-1).masked_fill(~valid, -1).topk(min(TOP, valid.shape[1])).indices  # (B, n)
    rows = torch.arange(len(hidden), device=hidden.device)[:, None]
    of_text = magnitude[rows, tokens].masked_fill(~valid[rows, tokens][..., None], 0).flatten(1)  # (B, n·D)
    largest, places = of_text.topk(min(TOP, of_text.shape[1]))
    position, dimension = tokens.gather(1, places // hidden.shape[2]), places % hidden.shape[2]
    top = {"value": hidden[rows, position, dimension] * (largest > 0), "position": position, "dimension": dimension}
    return {name: torch.nn.functional.pad(x, (0, TOP - places.shape[1])) for name, x in top.items()}


def ratio_mean(sums: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Σ sums / Σ counts over prompts, and its standard error by the spread between prompts.

    sums (P, …), counts broadcastable to it. The error is of a ratio of sums over independent prompts:
    sqrt(P/(P-1) Σ (s - m c)²) / Σ c (Cochran, Sampling Techniques, Section 2.11); NaN for a single prompt.
    Prompts that count nothing are no prompts; where none counts, both are NaN.
    """
    used = (counts > 0).sum(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = sums.sum(0) / counts.sum(0)
        spread = ((sums - mean * counts) ** 2).sum(0) * used / (used - 1)
        return mean, np.sqrt(spread) / counts.sum(0)


class LayerStatistics:
    """What is known of one layer, filled prompt by prompt. `arrays` is all of its state, for a restart."""

    def __init__(self, num_prompts: int, num_heads: int, width: int, causal: bool):
        """causal: whether queries see the keys before them only."""
        self.causal = causal
        names, p = len(QUANTITIES), num_prompts
        self.arrays = {
            "sums": np.zeros((p, names, num_heads)),
            "counts": np.zeros((p, names)),
            "norms": np.full((p, len(NORMS), num_heads), np.nan, np.float32),
            "states": np.full((p, len(STATES)), np.nan),
            "value": np.zeros((p, TOP), np.float32),
            "position": np.zeros((p, TOP), np.int32),
            "dimension": np.zeros((p, TOP), np.int32),
            "median": np.zeros(p, np.float32),
            "massive": np.zeros(p, np.int64),
            "massive_sum": np.zeros(width),  # of the states that hold a massive activation
            "massive_tokens": np.zeros(()),
            "profile": np.zeros((2, num_heads, PROFILE_LENGTH)),  # Σ over prompts of α_k and of its square
            "profile_prompts": np.zeros(PROFILE_LENGTH),
            "maps": np.zeros((num_heads, MAP_LENGTH, MAP_LENGTH), np.float32),  # of the first prompt
        }

    def add_attention(
        self,
        start: int,
        heads: Heads,
        valid: Tensor,
        seen: Tensor,
        delimiter: Tensor,
    ) -> None:
        """Prompts start … start + B - 1: see `query_quantities`, `attention_sums` and `norm_ratios`."""
        a, weights, rows = self.arrays, heads.weights, slice(start, start + len(heads.weights))
        quantities = query_quantities(weights, delimiter, self.causal)
        sums, counts = attention_sums(quantities, valid, seen, self.causal)
        a["sums"][rows], a["counts"][rows] = sums.cpu().numpy(), counts.cpu().numpy()
        norms = [norm_ratios(vectors, valid, weights.shape[1]) for vectors in (heads.values, heads.keys)]
        a["norms"][rows] = torch.stack(norms, 1).cpu().numpy()
        profile, used = key_profile(weights, quantities["row_sum"], valid, self.causal)
        profile = (profile * used[:, None]).double().cpu().numpy()
        a["profile"][:, :, : profile.shape[2]] += [profile.sum(0), (profile**2).sum(0)]
        a["profile_prompts"][: profile.shape[2]] += used.sum(0).cpu().numpy()
        if start == 0:
            text = weights[0, :, :MAP_LENGTH, :MAP_LENGTH].float() * valid[0, :MAP_LENGTH, None]
            first = text.cpu().numpy()
            a["maps"][:, : first.shape[1], : first.shape[2]] = first

    def add_hidden(self, start: int, hidden: Tensor, valid: Tensor) -> None:
        """Prompts start … start + B - 1: see `largest_activations`, `massive_entries` and `state_quantities`."""
        a, rows, hidden = self.arrays, slice(start, start + len(hidden)), hidden.float()
        magnitude = hidden.abs()
        top, median = largest_activations(hidden, magnitude, valid), median_magnitudes(magnitude, valid)
        for name, values in (top | {"median": median, "states": state_quantities(hidden, valid)}).items():
            a[name][rows] = values.cpu().numpy()
        a["massive"][rows] = 0
        if (top["value"][:, 0].abs() > MASSIVE_MAGNITUDE).any():
            massive = massive_entries(hidden, median, valid)
            a["massive"][rows] = massive.sum((1, 2)).cpu().numpy()
            states = hidden[massive.any(-1)].double()
            a["massive_sum"] += states.sum(0).cpu().numpy()
            a["massive_tokens"] += len(states)

    def results(self) -> dict[str, np.ndarray]:
        """Of each quantity and ratio of norms its mean and `_se` (N,); of the state's quantities likewise ();

        alpha_1_texts (P, N), alpha_1_queries (P,): α₁ of each prompt, and of how many queries;
        profile, profile_se (N, K): α_k of the first keys, mean over prompts;
        top_value, top_position, top_dimension, top_prompt (TOP,): the largest of all prompts;
        largest, largest_se (TOP,): mean over prompts of the 1st, 2nd, … largest magnitude; median_magnitude;
        largest_ratio(_se): mean over prompts of the largest magnitude over the median; massive_per_prompt;
        massive_mean (D,): mean state of the tokens that hold a massive activation, NaN if none does;
        sink_map (64, 64), sink_map_head: the first prompt's map in the head of largest first-token share.
        A layer without attention has NaN for all of attention.
        """
        a = self.arrays
        means, errors = ratio_mean(a["sums"], a["counts"][:, :, None])
        results = dict(zip(QUANTITIES, means, strict=True))
        results |= {f"{name}_se": error for name, error in zip(QUANTITIES, errors, strict=True)}
        results["queries"] = a["counts"][:, 0].sum()
        for name, values in zip(NORMS + STATES, [*np.moveaxis(a["norms"], 1, 0), *a["states"].T], strict=True):
            known = ~np.isnan(values)
            results[name], results[f"{name}_se"] = ratio_mean(np.where(known, values, 0), known.astype(float))
        with np.errstate(invalid="ignore", divide="ignore"):
            place = QUANTITIES.index("alpha_1")
            results["alpha_1_texts"] = (a["sums"][:, place] / a["counts"][:, place, None]).astype(np.float32)
            results["alpha_1_queries"] = a["counts"][:, place]
            results["massive_mean"] = (a["massive_sum"] / a["massive_tokens"]).astype(np.float32)
        results |= self._profile() | self._activations()
        shares = results["first_token_proportion"]
        head = 0 if np.isnan(shares).all() else int(np.nanargmax(shares))
        return results | {"sink_map": a["maps"][head], "sink_map_head": np.int64(head)}

    def _profile(self) -> dict[str, np.ndarray]:
        (sums, squares), num = self.arrays["profile"], self.arrays["profile_prompts"]
        with np.errstate(invalid="ignore", divide="ignore"):
            mean = sums / num
            error = np.sqrt(np.maximum(squares / num - mean**2, 0) / (num - 1))
        return {"profile": mean.astype(np.float32), "profile_se": error.astype(np.float32)}

    def _activations(self) -> dict[str, np.ndarray]:
        a = self.arrays
        magnitude = np.abs(a["value"]).astype(float)  # (P, TOP)
        places = np.argsort(-magnitude, axis=None, kind="stable")[:TOP]
        ones = np.ones(len(magnitude))
        largest, largest_se = ratio_mean(magnitude, ones[:, None])
        ratio, ratio_se = ratio_mean(magnitude[:, 0] / np.maximum(a["median"], 1e-30), ones)
        return {
            "top_value": a["value"].flat[places],
            "top_position": a["position"].flat[places],
            "top_dimension": a["dimension"].flat[places],
            "top_prompt": places // TOP,
            "largest": largest,
            "largest_se": largest_se,
            "largest_ratio": ratio,
            "largest_ratio_se": ratio_se,
            "median_magnitude": a["median"].mean(dtype=float),
            "massive_per_prompt": a["massive"].mean(),
        }


def stack_layers(layers: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Each layer's results as arrays with the layers on axis 0."""
    return {name: np.stack([layer[name] for layer in layers]) for name in layers[0]}
