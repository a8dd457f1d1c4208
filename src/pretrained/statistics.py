"""What is measured of a pretrained model, prompt by prompt, so that means have standard errors.

Attention weights are (B, N, Q, K): B prompts, N heads, Q = K = T positions. Every quantity is summed over a
prompt's queries in float64 and kept for each prompt; a mean is Σ sums / Σ queries, so that each token counts
equally, and does not depend on batches or padding. Attention is averaged over queries that are no padding.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from src.metrics import EPSILON, entropy

SINK_LENGTH, SINK_THRESHOLD = 64, 0.3  # T and ε of Gu et al. (ICLR 2025)
MASSIVE_MAGNITUDE, MASSIVE_RATIO = 100, 1000  # Sun et al. (2024)
TOP = 5  # activations kept of each prompt and layer
MAP_LENGTH = 64  # positions of the attention maps kept

# Averages over queries of: the row's largest weight (the published `max_proportion`, which is no proportion);
# the same as a share of the row's sum (the sparsity score as the paper's text defines it); the first key's
# share; the sum; entropy in nats of the row renormalised to 1; the same over the logarithm of how many keys
# the row sees; exp(entropy), the effective number of keys; and α₁ of Gu et al.
QUANTITIES = (
    "max_proportion",
    "max_share",
    "first_token_proportion",
    "row_sum",
    "entropy",
    "normalised_entropy",
    "effective_keys",
    "alpha_1",
)


def query_quantities(weights: Tensor) -> dict[str, Tensor]:
    """Each query's quantities (B, N, Q) of weights (B, N, Q, K)."""
    maximum, total, first = weights.amax(-1), weights.sum(-1), weights[..., 0]
    nats = entropy(weights)
    return {
        "max_proportion": maximum,
        "max_share": maximum / (total + EPSILON),
        "first_token_proportion": first / (total + EPSILON),
        "row_sum": total,
        "entropy": nats,
        "effective_keys": nats.exp(),
    }


def attention_sums(weights: Tensor, valid: Tensor, seen: Tensor, causal: bool) -> tuple[Tensor, Tensor]:
    """Sums over queries of the `QUANTITIES` S, (B, S, N), and how many queries they are over, (B, S); float64.

    weights (B, N, Q, K); valid (B, Q): queries that are no padding; seen (B, Q): how many keys a row sees.
    Normalised entropy leaves out rows that see one key. α₁ is over the first 64 queries, in prompts that
    have as many; where attention is not causal rows cannot be cut to 64 keys, and it is over all queries.
    """
    quantities = query_quantities(weights.float())
    several = valid & (seen > 1)
    if causal:
        early = torch.arange(valid.shape[1], device=valid.device) < SINK_LENGTH
        sink = valid & early & (valid[:, :SINK_LENGTH].sum(1, keepdim=True) == SINK_LENGTH)
    else:
        sink = valid
    quantities["normalised_entropy"] = quantities["entropy"] / seen.clamp(min=2).log()[:, None]
    quantities["alpha_1"] = quantities["first_token_proportion"]
    over = {"normalised_entropy": several, "alpha_1": sink}
    masks = [over.get(name, valid) for name in QUANTITIES]
    sums = [
        quantities[name].double().masked_fill(~mask[:, None], 0).sum(-1)
        for name, mask in zip(QUANTITIES, masks, strict=True)
    ]
    return torch.stack(sums, 1), torch.stack(masks, 1).sum(-1).double()


def largest_activations(hidden: Tensor, valid: Tensor) -> dict[str, Tensor]:
    """The largest entries of each prompt's residual stream `hidden` (B, T, D) at valid positions (B, T).

    value, position, dimension: (B, TOP), by falling magnitude; median: (B,) median magnitude of the prompt's
    entries; massive: (B,) how many are massive activations (Sun et al., 2024): more than 100 and at least
    1000 times the median. Magnitudes missing in very small states are 0.
    """
    found = [
        largest_of_prompt(state[mask].float(), mask.nonzero()[:, 0]) for state, mask in zip(hidden, valid, strict=True)
    ]
    return {name: torch.stack([one[name] for one in found]) for name in found[0]}


def largest_of_prompt(state: Tensor, positions: Tensor) -> dict[str, Tensor]:
    """`largest_activations` of one prompt, of its valid rows (n, D), which are at `positions` (n,)."""
    width, magnitude = state.shape[1], state.abs().flatten()
    places = magnitude.topk(min(TOP, len(magnitude))).indices
    median = magnitude.median()
    massive = magnitude[magnitude > MASSIVE_MAGNITUDE] >= MASSIVE_RATIO * median
    top = {"value": state.flatten()[places], "position": positions[places // width], "dimension": places % width}
    padded = {name: torch.nn.functional.pad(x, (0, TOP - len(places))) for name, x in top.items()}
    return padded | {"median": median, "massive": massive.sum()}


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

    def __init__(self, num_prompts: int, num_heads: int, causal: bool):
        """causal: whether queries see the keys before them only."""
        self.causal = causal
        names, p = len(QUANTITIES), num_prompts
        self.arrays = {
            "sums": np.zeros((p, names, num_heads)),
            "counts": np.zeros((p, names)),
            "value": np.zeros((p, TOP), np.float32),
            "position": np.zeros((p, TOP), np.int32),
            "dimension": np.zeros((p, TOP), np.int32),
            "median": np.zeros(p, np.float32),
            "massive": np.zeros(p, np.int64),
            "maps": np.zeros((num_heads, MAP_LENGTH, MAP_LENGTH), np.float32),  # of the first prompt
        }

    def add_attention(self, start: int, weights: Tensor, valid: Tensor, seen: Tensor) -> None:
        """Prompts start … start + B - 1: see `attention_sums`."""
        rows = slice(start, start + len(weights))
        sums, counts = attention_sums(weights, valid, seen, self.causal)
        self.arrays["sums"][rows], self.arrays["counts"][rows] = sums.cpu().numpy(), counts.cpu().numpy()
        if start == 0:
            text = weights[0, :, :MAP_LENGTH, :MAP_LENGTH].float() * valid[0, :MAP_LENGTH, None]
            first = text.cpu().numpy()
            self.arrays["maps"][:, : first.shape[1], : first.shape[2]] = first

    def add_hidden(self, start: int, hidden: Tensor, valid: Tensor) -> None:
        """Prompts start … start + B - 1: see `largest_activations`."""
        for name, values in largest_activations(hidden, valid).items():
            self.arrays[name][start : start + len(hidden)] = values.cpu().numpy()

    def results(self) -> dict[str, np.ndarray]:
        """Of each quantity its mean and `_se` (N,); of the activations:

        top_value, top_position, top_dimension, top_prompt (TOP,): the largest of all prompts;
        largest, largest_se (TOP,): mean over prompts of the 1st, 2nd, … largest magnitude; median_magnitude;
        largest_ratio(_se): mean over prompts of the largest magnitude over the median; massive_per_prompt;
        sink_map (64, 64), sink_map_head: the first prompt's map in the head of largest first-token share.
        """
        a = self.arrays
        means, errors = ratio_mean(a["sums"], a["counts"][:, :, None])
        results = dict(zip(QUANTITIES, means, strict=True))
        results |= {f"{name}_se": error for name, error in zip(QUANTITIES, errors, strict=True)}
        results["queries"] = a["counts"][:, 0].sum()
        results |= self._activations()
        head = int(np.nanargmax(results["first_token_proportion"]))
        return results | {"sink_map": a["maps"][head], "sink_map_head": np.int64(head)}

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


def sink_rate(alpha_1: np.ndarray) -> float:
    """Sink₁^0.3 of Gu et al.: the share of heads (any shape) whose α₁ exceeds 0.3; NaN where α₁ is unknown."""
    return float("nan") if np.isnan(alpha_1).any() else float((alpha_1 > SINK_THRESHOLD).mean())


def summary(results: dict[str, np.ndarray]) -> dict[str, dict[str, float]]:
    """Mean and quartiles over all heads of each quantity."""
    levels = {"25%": 0.25, "50%": 0.5, "75%": 0.75}
    return {
        name: {"mean": float(results[name].mean())}
        | {label: float(np.quantile(results[name], level)) for label, level in levels.items()}
        for name in QUANTITIES
    }
