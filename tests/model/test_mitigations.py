"""The functions made against sinks: each one's defining identity, an independent version, gradients, and extremes."""

import math

import entmax
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from src.model import mitigations as m
from src.model.attention import softmax

CAUSAL = torch.ones(5, 5).tril().bool()


def scores(seed: int, *shape: int, scale: float = 2.0) -> torch.Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


FUNCTIONS = {
    "softmax1": m.softmax1,
    "softmax_sink": lambda z, mask: m.softmax_sink(z, mask, torch.tensor(0.7, dtype=z.dtype)),
    "softmax_clipped": m.softmax_clipped,
    "softpick": m.softpick,
    "entmax15": m.entmax15,
    "sparsemax": m.sparsemax,
    "relu_mean": m.relu_mean,
    "sigmoid_bias": m.sigmoid_bias,
    "ssmax": lambda z, mask: m.ssmax(z, mask, torch.tensor(0.6, dtype=z.dtype)),
}


def plain_row(name: str, z: list[float], longest: int) -> list[float]:
    """The formulas, one row of visible keys at a time, with Python's numbers."""
    n, exp = len(z), [math.exp(x) for x in z]
    low = -min(0.03, 0.5 / longest)
    rows = {
        "softmax1": lambda: [e / (1 + sum(exp)) for e in exp],
        "softmax_sink": lambda: [e / (math.exp(0.7) + sum(exp)) for e in exp],
        "softmax_clipped": lambda: [min(max((1 - low) * e / sum(exp) + low, 0), 1) for e in exp],
        "softpick": lambda: [max(e - 1, 0) / (sum(abs(e - 1) for e in exp) + 1e-8) for e in exp],
        "entmax15": lambda: bisected(z, 1.5),
        "sparsemax": lambda: bisected(z, 2),
        "relu_mean": lambda: [max(x, 0) / n for x in z],
        "sigmoid_bias": lambda: [1 / (1 + math.exp(math.log(n) - x)) for x in z],
        "ssmax": lambda: [e / sum(n ** (0.6 * y) for y in z) for e in (n ** (0.6 * x) for x in z)],
    }
    return rows[name]()


def bisected(z: list[float], alpha: float) -> list[float]:
    """α-entmax by halving the interval that holds τ."""

    def weights(tau: float) -> list[float]:
        return [max((alpha - 1) * x - tau, 0) ** (1 / (alpha - 1)) for x in z]

    low, high = (alpha - 1) * max(z) - 1, (alpha - 1) * max(z)
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if sum(weights(middle)) > 1 else (low, middle)
    return weights(low)


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("mask", [None, CAUSAL], ids=["whole", "causal"])
def test_a_plain_loop_gives_the_same_weights(name, mask):
    z = scores(0, 3, 5, 5)
    expected = torch.zeros_like(z)
    for b, i in torch.cartesian_prod(torch.arange(3), torch.arange(5)).tolist():
        n = 5 if mask is None else i + 1
        expected[b, i, :n] = torch.tensor(plain_row(name, z[b, i, :n].tolist(), 5), dtype=z.dtype)
    tolerance = 1e-7 if name == "softpick" else 1e-12  # softpick's ε is not shifted with the maximum
    torch.testing.assert_close(FUNCTIONS[name](z, mask), expected, rtol=tolerance, atol=1e-12)


@given(seed=st.integers(0, 10**6), size=st.integers(1, 40), scale=st.sampled_from([0.01, 1.0, 10.0]))
def test_entmax_is_that_of_the_package(seed, size, scale):
    z = scores(seed, 4, size, scale=scale)
    torch.testing.assert_close(m.entmax15(z, None), entmax.entmax15(z, dim=-1), rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(m.sparsemax(z, None), entmax.sparsemax(z, dim=-1), rtol=1e-6, atol=1e-9)


def test_gradients_of_entmax_are_those_of_the_package():
    for ours, theirs in ((m.entmax15, entmax.entmax15), (m.sparsemax, entmax.sparsemax)):
        z, upstream = scores(1, 50, 9).requires_grad_(), scores(2, 50, 9)
        (expected,) = torch.autograd.grad(theirs(z, dim=-1), z, upstream)
        (found,) = torch.autograd.grad(ours(z, None), z, upstream)
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)


def test_entmax_of_a_diverged_member_is_no_number_and_spoils_no_other():
    for function in (m.entmax15, m.sparsemax):
        z = torch.stack([torch.full((3,), math.nan), torch.zeros(3)]).requires_grad_()
        weights = function(z, None)
        assert weights[0].isnan().all()
        assert weights[1].tolist() == pytest.approx([1 / 3] * 3)
        (grad,) = torch.autograd.grad(weights[:, 0].sum(), z)
        assert grad[1].isfinite().all()


def test_entmax_of_equal_scores_is_uniform():
    for function in (m.entmax15, m.sparsemax):
        torch.testing.assert_close(function(torch.full((2, 7), 3.0), None), torch.full((2, 7), 1 / 7))


@given(seed=st.integers(0, 10**6), size=st.integers(1, 12))
def test_sparsemax_is_the_nearest_point_of_the_simplex(seed, size):
    """The nearest point's residual z − w is the same on the support and not larger off it."""
    z = scores(seed, size)
    w = m.sparsemax(z, None)
    torch.testing.assert_close(w.sum(), torch.ones((), dtype=z.dtype))
    residual = z - w
    assert (w >= 0).all()
    assert residual[w > 0].max() - residual[w > 0].min() < 1e-12
    assert residual.max() <= residual[w > 0].max() + 1e-12


def test_an_outlet_is_one_more_key_of_value_zero():
    z, mask = scores(3, 2, 5, 5), torch.cat([CAUSAL, torch.ones(5, 1).bool()], dim=1)
    for score, weights in ((0.0, m.softmax1(z, CAUSAL)), (0.7, FUNCTIONS["softmax_sink"](z, CAUSAL))):
        more = torch.cat([z, torch.full((2, 5, 1), score, dtype=z.dtype)], dim=2)
        torch.testing.assert_close(weights, softmax(more, mask)[..., :-1])


def test_each_is_softmax_where_its_number_says_so(monkeypatch):
    z = scores(4, 2, 3, 5, 5)  # (sequences, heads, queries, keys)
    expected = softmax(z, CAUSAL)
    closed = m.softmax_sink(z, CAUSAL, torch.full((1, 3, 1, 1), -math.inf, dtype=z.dtype))
    torch.testing.assert_close(closed, expected)
    start = torch.full((1, 3, 1, 1), m.ssmax_start(5), dtype=z.dtype)
    torch.testing.assert_close(m.ssmax(z, CAUSAL, start)[..., -1, :], expected[..., -1, :])  # the longest row
    torch.testing.assert_close(m.ssmax(z, None, start), softmax(z, None))
    monkeypatch.setattr(m, "CLIP", 0.0)
    torch.testing.assert_close(m.softmax_clipped(z, CAUSAL), expected)


def test_numbers_are_of_each_head():
    z, sinks = scores(5, 2, 3, 4, 4), torch.tensor([-1.0, 0.0, 2.0], dtype=torch.float64)
    together = m.softmax_sink(z, None, sinks.view(1, 3, 1, 1))
    for head, sink in enumerate(sinks):
        torch.testing.assert_close(together[:, head], m.softmax_sink(z[:, head], None, sink.view(1, 1, 1)))


def test_clipped_softmax_of_a_long_uniform_row_lives():
    z = torch.zeros(1, 400, requires_grad=True)
    weights = m.softmax_clipped(z, None)
    assert (weights > 0).all()
    weights[0, 0].backward()
    assert z.grad.abs().max() > 0


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("mask", [None, CAUSAL], ids=["whole", "causal"])
def test_gradients_agree_with_finite_differences(name, mask):
    z = scores(6, 2, 5, 5).requires_grad_()
    assert torch.autograd.gradcheck(lambda z: FUNCTIONS[name](z, mask), (z,))


@pytest.mark.parametrize("start", [m.softmax_sink, m.ssmax])
def test_gradients_of_learned_numbers_agree_with_finite_differences(start):
    z, number = scores(7, 2, 3, 5, 5), scores(8, 1, 3, 1, 1).requires_grad_()
    assert torch.autograd.gradcheck(lambda number: start(z, CAUSAL, number), (number,))


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_extreme_scores_have_finite_weights_and_gradients(name, dtype):
    """Scores of ±1e4, all positive, all negative, both; the first row sees one key alone."""
    signs = torch.tensor([[1, 1, 1, 1, 1], [-1, -1, -1, -1, -1], [1, -1, 1, -1, 1], [0, 0, 0, 0, 0]])
    z = (1e4 * signs[:, None].expand(4, 5, 5)).to(dtype).requires_grad_()
    for mask in (None, CAUSAL):
        weights = FUNCTIONS[name](z, mask)
        assert weights.isfinite().all()
        (grad,) = torch.autograd.grad(weights.float().square().sum(), z)
        assert grad.isfinite().all()
        if mask is not None:
            assert (weights[:, ~mask] == 0).all()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_one_key(name):
    weights = FUNCTIONS[name](torch.tensor([[1.5]], dtype=torch.float64), None)
    assert weights.item() == pytest.approx(plain_row(name, [1.5], 1)[0], rel=1e-6)


def test_ssmax_starts_at_a_number_for_any_length():
    assert m.ssmax_start(1) == m.ssmax_start(2) == 1 / math.log(2)
    assert m.ssmax_start(20) == 1 / math.log(20)
