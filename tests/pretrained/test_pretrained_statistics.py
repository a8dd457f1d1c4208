"""Statistics: hand-computed cases, the reference's own, and independence of batches and padding."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from src.pretrained.statistics import (
    QUANTITIES,
    TOP,
    LayerStatistics,
    attention_sums,
    largest_activations,
    ratio_mean,
    sink_rate,
)


def causal_weights(num: int, length: int, seed: int, heads: int = 2) -> torch.Tensor:
    logits = 3 * torch.randn(num, heads, length, length, generator=torch.Generator().manual_seed(seed))
    return logits.masked_fill(torch.ones(length, length).triu(1).bool(), -math.inf).softmax(-1)


def measured(weights, hidden, lengths, batches, causal=True) -> dict[str, np.ndarray]:
    """Results of prompts of these lengths, added in batches of these sizes, each cut to its longest prompt."""
    layer, start = LayerStatistics(len(weights), weights.shape[1], causal), 0
    for size in batches:
        rows = slice(start, start + size)
        longest = max(lengths[rows])
        valid = torch.arange(longest) < torch.tensor(lengths[rows])[:, None]
        seen = torch.arange(1, longest + 1).expand(len(valid), -1)
        layer.add_attention(start, weights[rows, :, :longest, :longest], valid, seen)
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
        assert_allclose(parts[name], value, rtol=1e-6, atol=1e-7, err_msg=name)


def test_hand_computed():
    """Two queries of an unnormalised kernel: rows (0.2), (0.1, 0.3)."""
    weights = torch.tensor([[[[0.2, 0, 0], [0.1, 0.3, 0], [9.0, 9, 9]]]])
    valid, seen = torch.tensor([[True, True, False]]), torch.tensor([[1, 2, 3]])
    sums, counts = attention_sums(weights, valid, seen, causal=True)
    nats = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    expected = {
        "max_proportion": 0.5,
        "max_share": 1.75,
        "first_token_proportion": 1.25,
        "row_sum": 0.6,
        "entropy": nats,
        "normalised_entropy": nats / math.log(2),  # of the second row alone
        "effective_keys": 1 + math.exp(nats),
        "alpha_1": 0.0,  # has fewer than 64 tokens
    }
    assert_allclose(sums[0, :, 0], [expected[name] for name in QUANTITIES], atol=1e-6)
    assert counts[0].tolist() == [2, 2, 2, 2, 2, 1, 2, 0]
    assert sums.dtype == torch.float64


def test_alpha_is_over_the_first_64_tokens():
    weights = causal_weights(2, 70, 0)
    valid = torch.arange(70) < torch.tensor([[70], [63]])  # the second prompt is too short
    sums, counts = attention_sums(weights, valid, torch.arange(1, 71).expand(2, -1), causal=True)
    alpha = QUANTITIES.index("alpha_1")
    assert counts[:, alpha].tolist() == [64, 0]
    assert_allclose(sums[0, alpha] / 64, weights[0, :, :64, 0].mean(1), rtol=1e-6)
    assert sink_rate(np.array([[0.2, 0.31], [0.3, 0.9]])) == 0.5
    assert math.isnan(sink_rate(np.array([np.nan])))


def test_published_statistics(reference):
    """The two arrays that the paper's own function gave for the reference inputs."""
    valid = torch.from_numpy(reference["valid_mask"])
    seen = torch.arange(1, valid.shape[1] + 1).expand_as(valid)
    for i, weights in enumerate(torch.from_numpy(reference["attn_probs"])):
        layer = LayerStatistics(len(weights), weights.shape[1], causal=True)
        for start, size in ((0, 4), (4, 2)):
            rows = slice(start, start + size)
            layer.add_attention(start, weights[rows], valid[rows], seen[rows])
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
    found = largest_activations(hidden, valid)
    assert found["value"][0, :2].tolist() == [-500, 120]
    assert (found["position"][0, 0], found["dimension"][0, 0]) == (1, 3)
    assert found["massive"].tolist() == [2, 0]
    assert_allclose(found["median"], [0.1, 10])
    assert largest_activations(hidden[:, :1, :2], valid[:, :1])["value"].shape == (2, TOP)
