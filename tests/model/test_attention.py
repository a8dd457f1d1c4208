import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from src.model.attention import PAPER as ATTENTION

CAUSAL = torch.ones(2, 2).tril().bool()
e, sig = math.exp, lambda x: 1 / (1 + math.exp(-x))

# One head of width 4 (so c = 1/2), two positions: q·k = [[2, −4], [0, 2]], so c q·k = [[1, −2], [0, 1]].
Q = torch.tensor([[2.0, 0, 0, 0], [0, 1, 0, 0]])
K = torch.tensor([[1.0, 0, 0, 0], [-2, 2, 0, 0]])
# elu(q) + 1 = [[3, 1, 1, 1], [1, 2, 1, 1]], elu(k) + 1 = [[2, 1, 1, 1], [e⁻², 3, 1, 1]]
FEATURES = [[9, 3 * e(-2) + 5], [6, e(-2) + 8]]

BY_HAND = {
    "softmax": [[e(1) / (e(1) + e(-2)), e(-2) / (e(1) + e(-2))], [1 / (1 + e(1)), e(1) / (1 + e(1))]],
    "sigmoid_unnorm": [[sig(1), sig(-2)], [0.5, sig(1)]],
    "sigmoid_norm": [
        [sig(1) / (sig(1) + sig(-2)), sig(-2) / (sig(1) + sig(-2))],
        [0.5 / (0.5 + sig(1)), sig(1) / (0.5 + sig(1))],
    ],
    "linear_unnorm": FEATURES,
    "linear": [[x / sum(row) for x in row] for row in FEATURES],
    "coupled_linear_unnorm": [[2, e(-2)], [1, 2]],
    "coupled_linear_norm": [[2 / (2 + e(-2)), e(-2) / (2 + e(-2))], [1 / 3, 2 / 3]],
    "raw_dotproduct_unnorm": [[1, -2], [0, 1]],
    "raw_dotproduct_norm": [[1, -2], [0, 1]],  # |Σ| is 1 in both rows
    "mlp_unnorm": [[1, -2], [0, 1]],  # q and k stand for the feature map's outputs
    "mlp_norm": [[1, -2], [0, 1]],
    "uniform": [[0.5, 0.5], [0.5, 0.5]],
}
CAUSAL_BY_HAND = {
    "softmax": [[1, 0], BY_HAND["softmax"][1]],
    "sigmoid_norm": [[1, 0], BY_HAND["sigmoid_norm"][1]],
    "sigmoid_unnorm": [[sig(1), 0], BY_HAND["sigmoid_unnorm"][1]],
    "linear": [[1, 0], BY_HAND["linear"][1]],
    "coupled_linear_unnorm": [[2, 0], [1, 2]],
    "raw_dotproduct_norm": [[1, 0], [0, 1]],
    "uniform": [[1, 0], [0.5, 0.5]],
}


def test_every_type_has_its_weights_by_hand():
    assert BY_HAND.keys() == ATTENTION.keys()


@pytest.mark.parametrize("name", BY_HAND)
def test_weights_by_hand(name):
    torch.testing.assert_close(ATTENTION[name].weights(Q, K), torch.tensor(BY_HAND[name], dtype=torch.float32))


@pytest.mark.parametrize("name", CAUSAL_BY_HAND)
def test_causal_weights_by_hand(name):
    expected = torch.tensor(CAUSAL_BY_HAND[name], dtype=torch.float32)
    torch.testing.assert_close(ATTENTION[name].weights(Q, K, CAUSAL), expected)


def test_signed_scores_are_divided_by_the_magnitude_of_a_sum_above_one():
    q, k = torch.tensor([[2.0], [-2.0], [0.1]]), torch.tensor([[3.0], [-1.0]])  # scores ±(6, −2): sums ±4
    expected = torch.tensor([[1.5, -0.5], [-1.5, 0.5], [0.3, -0.1]])
    torch.testing.assert_close(ATTENTION["raw_dotproduct_norm"].weights(q, k), expected)


@pytest.mark.parametrize("name", [n for n, kind in ATTENTION.items() if kind.normalised])
@given(seed=st.integers(0, 1000), size=st.integers(1, 9), scale=st.floats(0.1, 1))
def test_rows_of_normalised_types_sum_to_one(name, seed, size, scale):
    generator = torch.Generator().manual_seed(seed)
    q, k = scale * torch.randn(2, 3, size, 8, generator=generator, dtype=torch.float64)
    sums = ATTENTION[name].weights(q, k, torch.ones(size, size).tril().bool()).sum(-1)
    if "dotproduct" in name or "mlp" in name:  # signed: at most one in magnitude
        assert (sums.abs() <= 1 + 1e-12).all()
        unnormalised = ATTENTION[name.replace("_norm", "_unnorm")]
        raw = unnormalised.weights(q, k, torch.ones(size, size).tril().bool()).sum(-1)
        torch.testing.assert_close(sums, raw.clamp(-1, 1))
    else:
        torch.testing.assert_close(sums, torch.ones_like(sums), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ATTENTION)
def test_hidden_keys_have_zero_weight_and_no_influence(name):
    q, k = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(5, 5).tril().bool()
    weights = ATTENTION[name].weights(q, k, mask)
    assert (weights[~mask] == 0).all()
    other = k.clone()
    other[3:] += 1
    torch.testing.assert_close(ATTENTION[name].weights(q, other, mask)[:3], weights[:3], rtol=0, atol=0)


@pytest.mark.parametrize("name", ATTENTION)
def test_gradients_agree_with_finite_differences(name):
    generator = torch.Generator().manual_seed(1)
    q, k = (torch.randn(3, 4, generator=generator, dtype=torch.float64, requires_grad=True) for _ in range(2))
    mask = torch.ones(3, 3).tril().bool()
    if name == "uniform":
        assert not ATTENTION[name].weights(q, k, mask).requires_grad
    else:
        torch.autograd.gradcheck(lambda q, k: ATTENTION[name].weights(q, k, mask), (q, k))


@pytest.mark.parametrize("name", ATTENTION)
def test_gradients_are_finite_far_out(name):
    q, k = (100 * torch.randn(4, 8, generator=torch.Generator().manual_seed(s)) for s in range(2))
    q.requires_grad_(), k.requires_grad_()
    weights = ATTENTION[name].weights(q, k, torch.ones(4, 4).tril().bool())
    assert weights.isfinite().all()
    (weights.square().sum() + 0 * (q.sum() + k.sum())).backward()
    assert q.grad.isfinite().all()
    assert k.grad.isfinite().all()
