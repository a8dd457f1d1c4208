"""Over heads: how many are sinks, by two definitions, and mean and quartiles of each quantity."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from src.pretrained.statistics import NORMS, QUANTITIES

SINK_THRESHOLD = 0.3  # ε of Gu et al. (ICLR 2025)
RESAMPLES = 1000  # of texts, for the error of a sink rate


@dataclass(frozen=True)
class Rate:
    """A share with its standard error over texts; both NaN where no text is long enough for α₁."""

    value: float
    error: float


def sink_rate(results: dict[str, np.ndarray], threshold: float = SINK_THRESHOLD) -> Rate:
    """The share of heads whose mean α₁ over texts exceeds the threshold; see `sink_rates`."""
    values, errors = sink_rates(results, [threshold])
    return Rate(float(values[0]), float(errors[0]))


def sink_rates(results: dict[str, np.ndarray], thresholds: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """For each threshold the share of heads whose mean α₁ exceeds it, of `alpha_1` (L, N), and its standard error.

    Heads without attention (NaN) are left out. The error is the spread over `RESAMPLES` bootstrap draws of texts
    from `alpha_1_texts` (L, P, N), each text as heavy as it has queries.
    """
    heads = results["alpha_1"][~np.isnan(results["alpha_1"])]
    if len(heads) == 0:
        return np.full((2, len(thresholds)), np.nan)
    rates = [(heads > threshold).mean() for threshold in thresholds]
    texts = measured(results["alpha_1_texts"])  # (P, heads)
    queries = results["alpha_1_queries"].max(0)  # the same in all layers that have attention
    queries = queries[queries > 0]
    if len(texts) == 1:
        return np.array(rates), np.full(len(rates), np.nan)
    draws = np.random.default_rng(0).multinomial(len(texts), np.full(len(texts), 1 / len(texts)), RESAMPLES) * queries
    means = draws @ texts / draws.sum(1, keepdims=True)  # (RESAMPLES, heads)
    return np.array(rates), np.array([(means > threshold).mean(1).std(ddof=1) for threshold in thresholds])


def sink_rate_of_texts(results: dict[str, np.ndarray], threshold: float = SINK_THRESHOLD) -> Rate:
    """Sink₁^ε of Gu et al. (2025): the mean over texts, layers and heads of whether `alpha_1_texts` exceeds ε."""
    values = measured(results["alpha_1_texts"])
    if values.size == 0:
        return Rate(float("nan"), float("nan"))
    rates = (values > threshold).mean(1)
    error = rates.std(ddof=1) / np.sqrt(len(rates)) if len(rates) > 1 else float("nan")
    return Rate(float(rates.mean()), float(error))


def by_text(texts: np.ndarray) -> np.ndarray:
    """α₁ (P, heads that have attention) of α₁ (L, P, N), NaN in heads without it and texts too short for it."""
    flat = np.moveaxis(texts, 1, 0).reshape(texts.shape[1], -1).astype(float)
    return flat[:, ~np.isnan(flat).all(0)]


def text_means(texts: np.ndarray) -> np.ndarray:
    """Each text's mean α₁ over heads (P,), of α₁ (L, P, N); NaN in texts too short for it."""
    values = by_text(texts)
    return values.mean(1) if values.size else np.full(len(values), np.nan)


def measured(texts: np.ndarray) -> np.ndarray:
    """`by_text` of the texts that are long enough."""
    values = by_text(texts)
    return values[~np.isnan(values).all(1)]


def summary(results: dict[str, np.ndarray]) -> dict[str, dict[str, float]]:
    """Mean and quartiles of each quantity over the heads that have it, NaN if none has."""
    levels = {"25%": 0.25, "50%": 0.5, "75%": 0.75}
    found = {}
    for name in QUANTITIES + NORMS:
        values = results[name][~np.isnan(results[name])]
        numbers = [values.mean(), *np.quantile(values, list(levels.values()))] if len(values) else [np.nan] * 4
        found[name] = dict(zip(("mean", *levels), map(float, numbers), strict=True))
    return found
