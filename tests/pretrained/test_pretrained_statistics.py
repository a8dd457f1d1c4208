"""Statistics: hand-computed cases, the reference's own, and independence of batches and padding."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from src.pretrained.rates import sink_rate, sink_rate_of_texts
from src.pretrained.statistics import (
    PROFILE_LENGTH,
    QUANTITIES,
    TOP,
    Heads,
    LayerStatistics,
    attention_sums,
    largest_activations,
    massive_entries,
    median_magnitudes,
    query_quantities,
    ratio_mean,
)


def causal_weights(num: int, length: int, seed: int, heads: int = 2) -> torch.Tensor:
    logits = 3 * torch.randn(num, heads, length, length, generator=torch.Generator().manual_seed(seed))
    return logits.masked_fill(torch.ones(length, length).triu(1).bool(), -math.inf).softmax(-1)


def measured(weights, hidden, lengths, batches, causal=True) -> dict[str, np.ndarray]:
    """Results of prompts of these lengths, added in batches of these sizes, each cut to its longest prompt."""
    layer, start = LayerStatistics(len(weights), weights.shape[1], hidden.shape[2], causal), 0
    delimiter = torch.arange(weights.shape[-1]) % 3 == 0
    for size in batches:
        rows = slice(start, start + size)
        longest = max(lengths[rows])
        valid = torch.arange(longest) < torch.tensor(lengths[rows])[:, None]
        seen = torch.arange(1, longest + 1).expand(len(valid), -1)
        values = hidden[rows, None, :longest]  # of one group of heads
        heads = Heads(weights[rows, :, :longest, :longest], keys=values + 1, values=values)
        layer.add_attention(start, heads, valid, seen, delimiter[:longest].expand(len(valid), -1))
        layer.add_hidden(start, hidden[rows, :longest], valid)
        start += size
    return layer.results()


@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 9), min_size=2, max_size=6),
    cuts=st.lists(st.integers(1, 3), min_size=6, max_size=6),
    seed=st.integers(0, 9),
)
def test_independent_of_batches_and_padding(lengths, cuts, seed):
    weights, num = causal_weights(len(lengths), 12, seed), len(lengths)
    hidden = torch.randn(num, 12, 7, generator=torch.Generator().manual_seed(seed))
    batches = [size for i, size in enumerate(cuts) if sum(cuts[:i]) < num]
    batches[-1] -= max(sum(batches) - num, 0)
    one = measured(weights, hidden, [12] * num, [num])  # everything is text
    assert one["queries"] == 12 * num
    whole, parts = measured(weights, hidden, lengths, [num]), measured(weights, hidden, lengths, batches)
    assert whole["queries"] == sum(lengths)
    for name, value in whole.items():
        assert_allclose(parts[name], value, rtol=1e-5, atol=1e-6, err_msg=name)


def test_hand_computed():
    """Two queries of an unnormalised kernel: rows (0.2), (0.1, 0.3)."""
    weights = torch.tensor([[[[0.2, 0, 0], [0.1, 0.3, 0], [9.0, 9, 9]]]])
    valid, seen = torch.tensor([[True, True, False]]), torch.tensor([[1, 2, 3]])
    delimiter = torch.tensor([[True, True, False]])  # the first key is a class of its own
    sums, counts = attention_sums(query_quantities(weights, delimiter), valid, seen, causal=True)
    nats = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    expected = {
        "max_proportion": 0.5,
        "max_share": 1.75,
        "first_token_proportion": 1.25,
        "delimiter_proportion": 0.75,
        "other_proportion": 0,
        "row_sum": 0.6,
        "entropy": nats,
        "normalised_entropy": nats / math.log(2),  # of the second row alone
        "effective_keys": 1 + math.exp(nats),
        "alpha_1": 0.0,  # has fewer than 64 tokens
    }
    assert_allclose(sums[0, :, 0], [expected[name] for name in QUANTITIES], atol=1e-6)
    assert counts[0].tolist() == [2, 2, 2, 2, 2, 2, 2, 1, 2, 0]
    assert sums.dtype == torch.float64


def test_alpha_is_over_the_first_64_tokens():
    weights = causal_weights(2, 70, 0)
    valid = torch.arange(70) < torch.tensor([[70], [63]])  # the second prompt is too short
    quantities = query_quantities(weights, torch.zeros_like(valid), causal=True)
    sums, counts = attention_sums(quantities, valid, torch.arange(1, 71).expand(2, -1), causal=True)
    alpha = QUANTITIES.index("alpha_1")
    assert counts[:, alpha].tolist() == [64, 0]
    assert_allclose(sums[0, alpha] / 64, weights[0, :, :64, 0].mean(1), rtol=1e-6)


def rates_of(texts: np.ndarray, queries: list[float]) -> dict[str, np.ndarray]:
    """Results with α₁ (P, N) of texts of so many queries, in one layer."""
    weights = np.array(queries, float)
    known = np.where(np.isnan(texts), 0, texts)
    mean = np.where(np.isnan(texts).all(0), np.nan, weights @ known / max(weights.sum(), 1))
    return {"alpha_1": mean[None], "alpha_1_texts": texts[None], "alpha_1_queries": weights[None]}


def test_both_sink_rates():
    """Of three texts, one too short, and four heads, one without attention: means 0.35, 0.25 and 0.65."""
    texts = np.array([[0.4, 0.2, 0.6, np.nan], [0.3, 0.3, 0.7, np.nan], [np.nan] * 4])
    results = rates_of(texts, [64, 64, 0])
    assert sink_rate(results).value == pytest.approx(2 / 3)
    per_text = sink_rate_of_texts(results)
    assert (per_text.value, per_text.error) == pytest.approx((1 / 2, np.std([2 / 3, 1 / 3], ddof=1) / math.sqrt(2)))
    assert math.isnan(sink_rate_of_texts(rates_of(np.full((2, 3), np.nan), [0, 0])).value)
    assert math.isnan(sink_rate({"alpha_1": np.full((1, 3), np.nan)}).value)
    assert math.isnan(sink_rate(rates_of(texts[:1], [64])).error)  # a single text has none
    heavy = rates_of(np.array([[0.9], [0.1]]), [1, 9])  # long texts weigh more
    assert sink_rate(heavy).value == 0


def test_error_of_the_sink_rate_covers():
    """It is the spread of the rate over repeated draws of texts."""
    rng = np.random.default_rng(3)
    draws = rng.normal(np.linspace(0.28, 0.32, 40), 0.1, size=(60, 50, 40))  # heads close to the threshold
    rates = [sink_rate(rates_of(texts, [64] * 50)) for texts in draws]
    assert np.mean([rate.error for rate in rates]) == pytest.approx(np.std([rate.value for rate in rates]), rel=0.25)


@pytest.mark.parametrize("causal", [True, False])
def test_blocks_of_rows_and_entropy_of_unnormalised_rows(causal):
    """More queries than are reduced at a time give what plain formulas give."""
    weights = 0.7 * causal_weights(2, 300, 3)
    delimiter = torch.rand(2, 300, generator=torch.Generator().manual_seed(0)) < 0.2
    found = query_quantities(weights, delimiter, causal)
    p = weights.double() / weights.double().sum(-1, keepdim=True)
    assert_allclose(found["entropy"], -torch.special.xlogy(p, p).sum(-1), atol=2e-5)
    assert_allclose(found["delimiter_proportion"], (p * delimiter[:, None, None])[..., 1:].sum(-1), atol=1e-5)
    assert_allclose(found["max_share"], p.amax(-1), rtol=1e-5)
    assert (query_quantities(torch.zeros(1, 1, 2, 2), delimiter[:1, :2])["entropy"] == 0).all()


def test_profile_norms_and_states_by_hand():
    """α_k is the mean over queries i ≥ k; a key counts where at least as many tokens follow as precede it."""
    weights, hidden = causal_weights(1, 6, 0), torch.randn(1, 6, 8, generator=torch.Generator().manual_seed(1))
    found = measured(weights, hidden, [6], [1])
    expected = [weights[0, :, k:, k].mean(1) for k in range(3)]
    assert_allclose(found["profile"][:, :3], torch.stack(expected, 1), rtol=1e-5)
    assert np.isnan(found["profile"][:, 3:]).all()
    assert found["profile"].shape == (2, PROFILE_LENGTH)
    norms = hidden[0].norm(dim=1)
    assert_allclose(found["value_norm_ratio"], [norms[0] / norms[1:].mean()] * 2, rtol=1e-5)
    assert_allclose((found["norm_first"], found["norm_others"]), (norms[0], norms[1:].mean()), rtol=1e-5)
    centred = hidden[0] - hidden[0].mean(1, keepdim=True)
    kurtosis = (centred**4).mean(1) / (centred**2).mean(1) ** 2
    assert_allclose(found["kurtosis"], kurtosis.mean(), rtol=1e-5)


def test_published_statistics(reference):
    """The two arrays that the paper's own function gave for the reference inputs."""
    valid = torch.from_numpy(reference["valid_mask"])
    seen = torch.arange(1, valid.shape[1] + 1).expand_as(valid)
    for i, weights in enumerate(torch.from_numpy(reference["attn_probs"])):
        layer = LayerStatistics(len(weights), weights.shape[1], 1, causal=True)
        for start, size in ((0, 4), (4, 2)):
            rows = slice(start, start + size)
            layer.add_attention(start, Heads(weights[rows]), valid[rows], seen[rows], torch.zeros_like(valid[rows]))
            layer.add_hidden(start, torch.zeros(size, valid.shape[1], 1), valid[rows])
        found = layer.results()
        for name in ("max_proportion", "first_token_proportion"):
            assert_allclose(found[name], reference[f"stat_{name}"][i], rtol=0, atol=1e-6)


def test_ratio_mean_is_the_mean_and_its_error():
    """With equal counts it is the mean and the usual standard error; a prompt that counts nothing is none."""
    values = np.random.default_rng(0).normal(size=(50, 3))
    counts = np.full((50, 1), 7.0)
    mean, error = ratio_mean(7 * values, counts)
    assert_allclose(mean, values.mean(0))
    assert_allclose(error, values.std(0, ddof=1) / math.sqrt(50))
    more = ratio_mean(np.vstack([7 * values, np.zeros((5, 3))]), np.vstack([counts, np.zeros((5, 1))]))
    assert_allclose(more, (mean, error))


def test_ratio_mean_covers():
    """The error of a ratio with unequal counts is the spread of the ratio over repeated draws."""
    rng = np.random.default_rng(1)
    counts = rng.integers(1, 20, size=(2000, 40, 1)).astype(float)
    sums = counts * rng.normal(1, 0.3, size=counts.shape)
    pairs = [ratio_mean(s, c) for s, c in zip(sums, counts, strict=True)]
    means, errors = np.array(pairs)[..., 0].T
    assert np.mean(errors) == pytest.approx(means.std(), rel=0.1)


def test_massive_activations():
    hidden = torch.full((2, 4, 5), 0.1)
    hidden[0, 1, 3], hidden[0, 2, 0], hidden[0, 3, 4] = -500.0, 120.0, 9999.0  # the last is padding
    hidden[1] = 10.0
    hidden[1, 0, 2] = 2000.0  # large, but only 200 times the median
    valid = torch.tensor([[True, True, True, False], [True] * 4])
    found = largest_activations(hidden, hidden.abs(), valid)
    assert found["value"][0, :2].tolist() == [-500, 120]
    assert (found["position"][0, 0], found["dimension"][0, 0]) == (1, 3)
    median = median_magnitudes(hidden.abs(), valid)
    assert_allclose(median, [0.1, 10])
    assert massive_entries(hidden, median, valid).nonzero().tolist() == [[0, 1, 3], [0, 2, 0]]
    assert largest_activations(hidden[:, :1, :2], hidden[:, :1, :2].abs(), valid[:, :1])["value"].shape == (2, TOP)
    layer = LayerStatistics(2, 1, 5, causal=True)
    layer.add_hidden(0, hidden, valid)
    assert layer.arrays["massive"].tolist() == [2, 0]
    assert_allclose(layer.arrays["massive_sum"], hidden[0, 1:3].sum(0))
    assert layer.arrays["massive_tokens"] == 2
