"""The model's pieces: against torch autograd in float64, computed by hand, and on wrong input."""

import entmax
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from src.value_softmax import model as m
from src.value_softmax import plain
from src.value_softmax.kernels import EPSILON, LOSSES, NORMALISATIONS, SOFTPICK_EPSILON, TABLE
from src.value_softmax.model import value_softmax

TORCH_ALPHA = {
    "L1": lambda z: z.abs() / (z.abs().sum() + EPSILON),
    "Sum": lambda z: z / (z.sum() + EPSILON),
    "L2": lambda z: z**2 / ((z**2).sum() + EPSILON),
    "Softmax": lambda z: torch.softmax(z, -1),
    "ReLU": lambda z: torch.relu(z) / (torch.relu(z).sum() + EPSILON),
    "Sigmoid": torch.sigmoid,
    "softmax1": lambda z: torch.softmax(torch.cat((z, z.new_zeros(1))), -1)[:-1],
    "softmax_sink": lambda z: torch.softmax(z, -1)[:-1],
    "entmax": lambda z: entmax.entmax15(z, -1),
    "softpick": lambda z: torch.relu(z.exp() - 1) / ((z.exp() - 1).abs().sum() + SOFTPICK_EPSILON),
    "relu_mean": lambda z: torch.relu(z) / len(z),
    "softmax_clipped": lambda z: torch.clamp(1.03 * torch.softmax(z, -1) - 0.03, 0, 1),
    "ssmax": lambda z: torch.softmax(z[-1] * np.log(len(z) - 1) * z[:-1], -1),
}
TORCH_LOSS = {
    "logistic": lambda b, y, X: torch.nn.functional.softplus(-(y @ b), threshold=1000),
    "square": lambda b, y, X: 0.5 * ((b - y) ** 2).sum(),
    "regression": lambda b, y, X: ((y - X @ b) ** 2).sum(),
    "cross-entropy": lambda b, y, X: -(y * torch.log_softmax(b, -1)).sum(),
    "linear": lambda b, y, X: -(y @ b),
}


def torch_loss(model, V, A):
    """The mean over the rows of A of the loss, by torch alone."""
    y, X = torch.tensor(model.target), torch.tensor(model.X)
    n, f = V.shape[1], TORCH_ALPHA[NORMALISATIONS[model.normalisation]]
    rows = [f(torch.cat((V @ a[:n], a[n:])) if model.tied else a) for a in A]
    return sum(TORCH_LOSS[LOSSES[model.loss]](V @ s, y, X) for s in rows) / len(rows)


@pytest.mark.parametrize("name", NORMALISATIONS)
@given(seed=st.integers(0, 10**6), n=st.integers(1, 12))
@settings(max_examples=30)
def test_normalisation_and_its_vjp_match_autograd(name, seed, n):
    rng = np.random.default_rng(seed)
    z, w = rng.normal(1, 0.5, n + TABLE[name].parameters), rng.normal(size=n)
    tensor = torch.tensor(z, requires_grad=True)
    s = TORCH_ALPHA[name](tensor)
    s.backward(torch.tensor(w))
    scale = max(1.0, np.abs(s.detach().numpy()).max() ** 2)  # a sum near 0 magnifies rounding
    np.testing.assert_allclose(m.alpha(name, z), s.detach(), rtol=1e-12, atol=1e-14 * scale)
    np.testing.assert_allclose(m.alpha_vjp(name, z, w), tensor.grad, rtol=1e-9, atol=1e-12 * scale)


@pytest.mark.parametrize("name", LOSSES)
@given(seed=st.integers(0, 10**6), d=st.integers(1, 12), size=st.sampled_from([0.1, 1.0, 30.0]))
@settings(max_examples=30)
def test_loss_and_its_gradient_match_autograd(draw_model, name, seed, d, size):
    rng = np.random.default_rng(seed)
    model, b = draw_model(rng, name, d), size * rng.normal(size=d)
    tensor = torch.tensor(b, requires_grad=True)
    value = TORCH_LOSS[name](tensor, torch.tensor(model.target), torch.tensor(model.X))
    value.backward()
    np.testing.assert_allclose(m.loss(model, b), value.item(), rtol=1e-11, atol=1e-13)
    np.testing.assert_allclose(m.loss_gradient(model, b), tensor.grad, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("normalisation", NORMALISATIONS)
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("rows", [None, 3])
def test_gradients_match_autograd(draw_model, loss, normalisation, tied, rows):
    rng = np.random.default_rng(5)
    d, n = (4, 4) if tied else (4, 6)
    model = draw_model(rng, loss, d, normalisation, tied)
    V = np.eye(d) + 0.1 * rng.normal(size=(d, d)) if tied else rng.normal(size=(d, n))
    width = n + TABLE[normalisation].parameters
    a = 1 + 0.2 * rng.normal(size=(rows, width) if rows else width)
    tensors = torch.tensor(V, requires_grad=True), torch.tensor(a, requires_grad=True)
    torch_loss(model, tensors[0], torch.atleast_2d(tensors[1])).backward()
    for ours, tensor in zip(m.gradients(model, V, a), tensors, strict=True):
        assert ours.shape == tuple(tensor.shape)
        np.testing.assert_allclose(ours, tensor.grad, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("name", NORMALISATIONS)
@given(seed=st.integers(0, 10**6), n=st.integers(1, 12), size=st.sampled_from([0.1, 1.0, 5.0]))
@settings(max_examples=20)
def test_normalisation_and_its_vjp_are_the_plain_ones_for_scores_of_any_sign(name, seed, n, size):
    rng = np.random.default_rng(seed)
    z, w = size * rng.normal(size=n + TABLE[name].parameters), rng.normal(size=n)
    s, J = plain.alpha(name, z, TABLE[name].option)
    scale = max(1.0, np.abs(J).max())
    np.testing.assert_allclose(m.alpha(name, z), s, rtol=1e-12, atol=1e-13 * scale)
    np.testing.assert_allclose(m.alpha_vjp(name, z, w), J.T @ w, rtol=1e-9, atol=1e-12 * scale**2)


@given(
    seed=st.integers(0, 10**6),
    n=st.integers(1, 12),
    alpha=st.one_of(st.sampled_from([1.0, 1.25, 1.5, 1.75, 2.0]), st.floats(1.02, 2.0)),
    size=st.sampled_from([0.1, 1.0, 30.0]),
)
@settings(max_examples=60)
def test_entmax_is_the_packages(seed, n, alpha, size):
    rng = np.random.default_rng(seed)
    z, w = size * rng.normal(size=n), rng.normal(size=n)
    tensor = torch.tensor(z, requires_grad=True)
    s = torch.softmax(tensor, -1) if alpha == 1 else entmax.entmax_bisect(tensor, alpha, -1, n_iter=200)
    s.backward(torch.tensor(w))
    # s near the edge of the support is a difference of scores of this size, to a power of at least 1
    np.testing.assert_allclose(m.alpha("entmax", z, alpha), s.detach(), rtol=0, atol=1e-12)
    ours = m.alpha_vjp("entmax", z, w, alpha)
    support = np.where(m.alpha("entmax", z, alpha) > 1e-6)[0]  # its edge is a jump at α = 2
    np.testing.assert_allclose(ours[support], tensor.grad[support], rtol=0, atol=1e-8)


@pytest.mark.parametrize(("alpha", "reference"), [(1.5, entmax.entmax15), (2.0, entmax.sparsemax)])
def test_the_closed_forms_of_entmax_are_the_packages(alpha, reference):
    rng = np.random.default_rng(0)
    for n in (1, 2, 5, 40):
        z = rng.normal(size=(20, n))
        np.testing.assert_allclose(m.alphas("entmax", z, alpha), reference(torch.tensor(z), -1), rtol=0, atol=1e-14)


@pytest.mark.parametrize("alpha", [1.5, 2.0])
def test_the_iteration_of_entmax_meets_the_closed_forms(alpha):
    """α a rounding away from 1.5 and 2 takes the iteration."""
    z = np.random.default_rng(0).normal(size=(30, 9))
    near = np.nextafter(alpha, 1)
    np.testing.assert_allclose(m.alphas("entmax", z, near), m.alphas("entmax", z, alpha), rtol=0, atol=1e-13)


def test_entmax_nears_softmax_as_alpha_nears_1():
    z = np.random.default_rng(0).normal(size=7)
    off = [np.abs(m.alpha("entmax", z, 1 + r) - m.alpha("Softmax", z)).max() for r in (1e-2, 1e-4, 1e-9)]
    assert off[0] > 50 * off[1] > 50 * 1000 * off[2]


@pytest.mark.parametrize("name", [name for name in NORMALISATIONS if name not in ("Sum", "L1", "L2", "ReLU")])
@pytest.mark.parametrize("z", [[1e4, -1e4, 1e4], [-1e4, -1e4, -2e4], [0.0, 0.0, 0.0], [700.0, 710.0, -710.0]])
def test_extreme_scores_stay_finite(name, z):
    z = z + [1.0] * TABLE[name].parameters
    with np.errstate(all="ignore"):
        assert np.isfinite(m.alpha(name, z)).all()
        assert np.isfinite(m.alpha_vjp(name, z, [1.0, -2.0, 3.0])).all()


def test_the_winners_gradient_is_exact_where_subtraction_is_rounding():
    """At a gap of 60 nats (J w)_m = s_m Σ s_j (w_m - w_j) is 1e-26, which w_m - ⟨s, w⟩ cannot hold."""
    z, w = [60.0, 0.0, 1.0], [5.0, 2.0, 3.0]
    exact = np.exp(-60.0) * 3 + np.exp(-59.0) * 2
    np.testing.assert_allclose(m.alpha_vjp("Softmax", z, w)[0], exact, rtol=1e-12)
    shares = np.exp(np.array(z) - 60)
    exact = np.exp(-60.0) * 5 + shares[1] * 3 + shares[2] * 2  # softmax1's outlet has value 0
    np.testing.assert_allclose(m.alpha_vjp("softmax1", z, w)[0], exact, rtol=1e-12)


def test_new_maps_by_hand():
    np.testing.assert_allclose(m.alpha("softmax1", np.log([1.0, 2.0])), [0.25, 0.5])
    np.testing.assert_allclose(m.alpha("softmax_sink", np.log([1.0, 2.0, 5.0])), [1 / 8, 2 / 8])
    np.testing.assert_allclose(m.alpha("entmax", [0.0, 0.5, 0.0], 2.0), [1 / 6, 2 / 3, 1 / 6])
    np.testing.assert_allclose(m.alpha("entmax", [3.0, 0.0], 1.5), [1, 0])  # one-hot from a gap of 1 / (α - 1) = 2
    np.testing.assert_allclose(m.alpha("entmax", [1.0, 0.0], 1.5), (0.25 * np.array([1, -1]) + 7**0.5 / 4) ** 2)
    np.testing.assert_allclose(m.alpha("softpick", np.log([3.0, 0.5])), np.array([2, 0]) / 2.5, rtol=1e-7)
    np.testing.assert_allclose(m.alpha("relu_mean", [3.0, -1.0]), [1.5, 0])
    np.testing.assert_allclose(m.alpha("softmax_clipped", [0.0] * 35), np.zeros(35))
    np.testing.assert_allclose(m.alpha("softmax_clipped", [0.0, 0.0], 0.0), [0.5, 0.5])
    np.testing.assert_allclose(m.alpha("ssmax", [1.0, 0.0, 2.0]), np.array([4, 1]) / 5)


def test_hand_computed_cases():
    z = [1.0, -3.0, 2.0]
    np.testing.assert_allclose(m.alpha("L1", z), np.array([1, 3, 2]) / 6)
    np.testing.assert_allclose(m.alpha("L2", z), np.array([1, 9, 4]) / 14)
    np.testing.assert_allclose(m.alpha("ReLU", z), np.array([1, 0, 2]) / 3)
    np.testing.assert_allclose(m.alpha("Sum", [1.0, 3.0]), [0.25, 0.75])
    np.testing.assert_allclose(m.alpha("Sigmoid", [0.0, np.log(3)]), [0.5, 0.75])
    np.testing.assert_allclose(m.alpha("Softmax", np.log([1.0, 3.0])), [0.25, 0.75])
    assert m.loss(value_softmax("logistic", [0.6, 0.8]), [0.0, 0.0]) == pytest.approx(np.log(2))
    np.testing.assert_allclose(m.loss_gradient(value_softmax("logistic", [0.6, 0.8]), [0, 0]), [-0.3, -0.4])
    assert m.loss(value_softmax("square", [3.0, 4.0]), [0.0, 0.0]) == 12.5
    assert m.loss(value_softmax("regression", [3.0, 4.0], X=np.eye(2)), [0.0, 0.0]) == 25.0
    assert m.loss(value_softmax("cross-entropy", [0.5, 0.5]), [7.0, 7.0]) == pytest.approx(np.log(2))


@given(z=st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=20), shift=st.floats(-1e3, 1e3))
def test_softmax_sums_to_one_and_ignores_a_shift(z, shift):
    s = m.alpha("Softmax", z)
    assert s.sum() == pytest.approx(1, abs=1e-14)
    np.testing.assert_allclose(m.alpha("Softmax", np.array(z) + shift), s, rtol=1e-8, atol=1e-300)


@pytest.mark.parametrize("margin", [-1e4, 1e4])
def test_logistic_loss_far_out_neither_overflows_nor_warns(margin):
    model = value_softmax("logistic", [1.0])
    with np.errstate(all="raise"):
        assert m.loss(model, [margin]) == max(-margin, 0)
        np.testing.assert_allclose(m.loss_gradient(model, [margin]), [-float(margin < 0)])


def test_sums_that_vanish_stay_finite():
    for name in ("L1", "Sum", "L2", "ReLU"):
        assert np.isfinite(m.alpha(name, np.zeros(3))).all()


BETA = [0.6, 0.8]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: value_softmax("hinge", BETA), "loss is 'hinge': choose one of logistic"),
        (lambda: value_softmax("logistic", BETA, "max"), "normalisation is 'max': choose one of L1"),
        (lambda: value_softmax("logistic", [0.0, 0.0]), "norm 0"),
        (lambda: value_softmax("logistic", [1.0, 1.0]), "norm 1.41421356"),
        (lambda: value_softmax("square", [1.0, np.nan]), "target is nan at"),
        (lambda: value_softmax("square", [[1.0]]), "target has shape"),
        (lambda: value_softmax("square", []), "target has shape"),
        (lambda: value_softmax("square", "β"), "target is no array"),
        (lambda: value_softmax("cross-entropy", [0.5, 0.6]), "sums to 1.1"),
        (lambda: value_softmax("cross-entropy", [1.5, -0.5]), "least entry -0.5"),
        (lambda: value_softmax("regression", BETA), "X is None"),
        (lambda: value_softmax("regression", BETA, X=np.eye(3)), "one entry for each row of X"),
        (lambda: value_softmax("square", BETA, X=np.eye(2)), "X is given"),
        (lambda: m.gradients(value_softmax("square", BETA), np.eye(3), np.zeros(3)), "V has shape"),
        (lambda: m.gradients(value_softmax("square", BETA), np.eye(2), np.zeros(3)), "V has shape"),
        (lambda: m.gradients(value_softmax("square", BETA), np.eye(2), [0, np.inf]), "a is inf at"),
        (lambda: m.gradients(value_softmax("square", BETA, tied=True), np.ones((2, 3)), [0, 0, 0]), "square"),
        (lambda: m.loss(value_softmax("square", BETA), np.zeros(3)), "beta_hat has shape"),
        (lambda: m.alpha_vjp("L1", [1, 2], [1, 2, 3]), "w has shape"),
        (lambda: m.alpha("entmax", [1, 2], 0.99), r"option is 0.99: it must be a number in \[1, 2\]"),
        (lambda: m.alpha("entmax", [1, 2], 2.5), "option is 2.5"),
        (lambda: m.alpha("entmax", [1, 2], np.nan), "option is nan"),
        (lambda: m.alpha("entmax", [1, 2], "1.5"), "option is '1.5'"),
        (lambda: m.alpha("softmax_clipped", [1, 2], 0.1), "option is 0.1"),
        (lambda: m.alpha("Softmax", [1, 2], 1.5), "Softmax has no constant"),
        (lambda: m.alpha("ssmax", [1.0]), "at least one score before its parameter"),
        (lambda: value_softmax("logistic", BETA, "entmax", option=3), "option is 3"),
        (lambda: m.gradients(value_softmax("square", BETA, "softmax_sink"), np.eye(2), [0, 0]), "V has shape"),
    ],
)
def test_wrong_input_is_refused_in_one_sentence(call, words):
    with pytest.raises(ValueError, match=words) as error:
        call()
    assert "\n" not in str(error.value)
