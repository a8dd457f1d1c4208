"""Gradient flow: agreement with descent, tolerances, the reduced system, and how far it reaches."""

import numpy as np
import pytest
from scipy.interpolate import CubicSpline

from src.value_softmax.descent import descend
from src.value_softmax.flow import SETTLED, flow, orbit, reduce, reduced_flow
from src.value_softmax.kernels import LOSSES, NORMALISATIONS, TABLE
from src.value_softmax.model import value_softmax

LOG_GOOGOL = np.log(1e100)


def draw_start(seed: int, d: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Values V (d, n) and scores a (n)."""
    rng = np.random.default_rng(seed)
    return 0.3 * rng.normal(size=(d, n)), 0.3 * rng.normal(size=n)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("name", LOSSES)
def test_descent_approaches_the_flow_in_proportion_to_the_step(draw_model, name, tied):
    V, a = draw_start(3, 4, 4)
    model = draw_model(np.random.default_rng(3), name, 4, tied=tied)
    exact = flow(model, V, a, [2.0], tol=1e-11)
    errors = []
    for lr in (2e-3, 1e-3):
        run = descend(model, V, a, steps=round(2 / lr), lr=lr, record=[round(2 / lr)])
        errors.append(max(np.abs(run.V - exact.V).max(), np.abs(run.a - exact.a).max()))
    assert 0 < errors[1] < 5e-3
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.05)


@pytest.mark.parametrize("name", LOSSES)
def test_the_tolerance_chosen_is_met(draw_model, name):
    V, a = draw_start(4, 4, 5)
    model = draw_model(np.random.default_rng(4), name, 4)
    t = np.geomspace(1e-2, 1e4, 20)
    for tol in (1e-6, 1e-8):
        coarse = flow(model, V, a, t, tol=tol)
        for fine in (flow(model, V, a, t, tol=tol / 2), flow(model, V, a, t, tol=1e-11)):
            np.testing.assert_allclose(coarse.V, fine.V, rtol=tol, atol=tol)
            np.testing.assert_allclose(coarse.a, fine.a, rtol=tol, atol=tol)


@pytest.mark.parametrize("loss", ["logistic", "square"])
def test_the_reduced_tolerance_chosen_is_met(loss):
    u, log_t = np.array([0.1, -0.2, 0.3, 0.0]), np.linspace(-5, LOG_GOOGOL, 40)
    for tol in (1e-6, 1e-8):
        coarse = reduced_flow(loss, u, np.zeros(4), log_t, tol=tol)
        for fine_tol in (tol / 2, 1e-11):
            fine = reduced_flow(loss, u, np.zeros(4), log_t, tol=fine_tol)
            np.testing.assert_allclose(coarse.a, fine.a, rtol=tol, atol=tol)
            np.testing.assert_allclose(coarse.u, fine.u, rtol=tol, atol=tol)


def test_the_reduced_flow_is_the_logistic_flow():
    V, a = draw_start(5, 6, 5)
    beta = np.ones(6) / np.sqrt(6)
    t = np.geomspace(1e-2, 1e6, 30)
    full = flow(value_softmax("logistic", beta), V, a, t, tol=1e-11)
    reduced = reduced_flow("logistic", V.T @ beta, a, np.log(t), tol=1e-11)
    np.testing.assert_allclose(full.u, reduced.u, rtol=1e-7, atol=1e-7)
    np.testing.assert_allclose(full.s, reduced.s, atol=1e-7)


def test_the_reduced_flow_is_the_square_flow_from_rank_one():
    beta, u, a = np.array([1.0, 2.0, -0.5]), np.array([0.3, -0.1, 0.2, 0.0]), np.array([0.1, 0.0, -0.2, 0.3])
    beta_sq = beta @ beta
    t = np.geomspace(1e-2, 1e3, 30)
    full = flow(value_softmax("square", beta), np.outer(beta, u) / beta_sq, a, t, tol=1e-11)
    reduced = reduced_flow("square", u, a, np.log(t), beta_sq=beta_sq, tol=1e-11)
    np.testing.assert_allclose(full.u, reduced.u, atol=1e-7)
    np.testing.assert_allclose(full.a, reduced.a, atol=1e-7)
    assert np.linalg.matrix_rank(full.V[-1], tol=1e-8) == 1


FLOWING = [name for name in NORMALISATIONS if not TABLE[name].slides]


@pytest.mark.parametrize("loss", ["logistic", "linear"])
@pytest.mark.parametrize("name", FLOWING)
def test_every_maps_reduced_flow_is_its_full_flow(name, loss):
    rng = np.random.default_rng(5)
    V, a = 0.3 * rng.normal(size=(3, 4)), 1 + 0.1 * rng.normal(size=4 + TABLE[name].parameters)
    beta, t = np.array([0.6, 0.0, 0.8]), np.geomspace(1e-2, 3, 10)
    full = flow(value_softmax(loss, beta, name), V, a, t, tol=1e-11)
    reduced = reduced_flow(loss, V.T @ beta, a, np.log(t), normalisation=name, tol=1e-11)
    np.testing.assert_allclose(full.u, reduced.u, rtol=1e-7, atol=1e-7)
    np.testing.assert_allclose(full.a, reduced.a, rtol=1e-7, atol=1e-7)
    np.testing.assert_allclose(full.s, reduced.s, atol=1e-7)
    assert np.abs(full.a[-1] - a).max() > 1e-2


@pytest.mark.parametrize("beta_sq", [1.0, 2.5])
def test_both_losses_follow_one_orbit(beta_sq):
    u, a, log_t = np.array([0.2, -0.1, 0.0, 0.05]), np.zeros(4), np.linspace(-4, 12, 300)
    for loss in ("logistic", "square"):
        run = reduced_flow(loss, u, a, log_t, beta_sq=beta_sq, tol=1e-11)
        moving = np.flatnonzero(np.diff(run.tau, prepend=-1) > 1e-9)  # the square loss comes to rest
        shared = orbit(u, a, run.tau[moving], beta_sq=beta_sq, tol=1e-11)
        assert len(moving) > 100
        np.testing.assert_allclose(run.u[moving], shared.u, atol=1e-6)
        np.testing.assert_allclose(run.a[moving], shared.a, atol=1e-6)


def test_descent_runs_along_the_orbit_too():
    V, a = draw_start(6, 4, 5)
    beta = np.array([0.5, 0.5, 0.5, -0.5])
    run = reduce(descend(value_softmax("logistic", beta), V, a, steps=20_000, lr=0.01))
    exact = orbit(run.u[0], a, run.tau[1:])
    np.testing.assert_allclose(run.u[1:], exact.u, atol=5e-3)
    np.testing.assert_allclose(run.a[1:], exact.a, atol=5e-3)


def test_tau_is_the_integral_of_gamma():
    V, a = draw_start(7, 4, 5)
    run = flow(value_softmax("logistic", [0.6, 0.8, 0.0, 0.0]), V, a, np.linspace(0, 50, 500), tol=1e-11)
    integral = CubicSpline(run.t, run.gamma).antiderivative()(run.t)
    np.testing.assert_allclose(reduce(run).tau, integral, atol=1e-6)


@pytest.mark.parametrize("log_t", [LOG_GOOGOL, 1e4, 1e6])
@pytest.mark.parametrize("loss", ["logistic", "square"])
def test_times_beyond_every_float_are_reached_without_a_warning(loss, log_t):
    u = np.array([0.1, -0.1, 0.3])
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        run = reduced_flow(loss, u, np.zeros(3), np.linspace(0, log_t, 100))
    assert np.isfinite(run.u).all()
    assert run.tau[-1] == pytest.approx(log_t, rel=0.02) if loss == "logistic" else run.tau[-1] < 3


@pytest.mark.parametrize("offset", [0.0, 5.0])  # from below the target, and from beyond it
def test_the_square_loss_comes_to_rest_at_the_target(offset):
    u = offset + np.array([0.1, -0.1, 0.3])
    run = reduced_flow("square", u, np.zeros(3), [0.0, 10.0, 1000.0])
    np.testing.assert_array_equal(run.u[1], run.u[2])
    assert abs(1 - run.s[-1] @ run.u[-1]) < 10 * SETTLED
    assert np.sign(run.tau[-1]) == (1 if offset == 0 else -1)


def test_a_start_at_rest_stays():
    run = reduced_flow("square", [1.0, 1.0, 1.0], np.zeros(3), [0.0, 230.0])
    np.testing.assert_array_equal(run.u, 1)


def test_the_start_itself_can_be_asked_for():
    run = flow(value_softmax("square", [1.0, 0.0]), np.eye(2), [0.1, 0.0], [0.0])
    np.testing.assert_array_equal(run.V[0], np.eye(2))
    np.testing.assert_allclose(reduced_flow("square", [0.1, 0.0], [0.0, 0.0], [-800.0]).u, [[0.1, 0.0]])


def test_attention_rows_flow():
    V, _ = draw_start(8, 4, 5)
    run = flow(value_softmax("logistic", [0.6, 0.8, 0, 0]), V, np.zeros((3, 5)), np.geomspace(1, 1e3, 5))
    assert run.s.shape == (5, 3, 5)
    np.testing.assert_allclose(run.s[:, 0], run.s[:, 2], rtol=1e-12)  # equal rows stay equal
    assert (np.diff(run.loss) < 0).all()


SQUARE = value_softmax("square", [1.0, 0.0])


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: flow(SQUARE, np.eye(2), [0, 0], [1, 1]), "t does not increase"),
        (lambda: flow(SQUARE, np.eye(2), [0, 0], [-1, 1]), "t starts at -1"),
        (lambda: flow(SQUARE, np.eye(2), [0, np.nan], [1]), "a is nan at"),
        (lambda: flow(SQUARE, np.eye(2), [0, 0], [1], tol=0), "tol is 0"),
        (lambda: orbit([0, 1], [0], [1]), "a has shape"),
        (lambda: orbit([0, 1], [0, 0], [1], beta_sq=0), "beta_sq is 0"),
        (lambda: orbit([0, 1], [0, 0], [-1]), "tau starts at -1"),
        (lambda: reduced_flow("regression", [0, 1], [0, 0], [1]), "loss is 'regression': choose"),
        (lambda: reduced_flow("square", [0, np.inf], [0, 0], [1]), "u is inf"),
        (lambda: reduce(flow(value_softmax("square", [1, 0], "L2"), np.eye(2), [1, 1], [1])), "not reduce"),
        (lambda: flow(value_softmax("square", [1, 0], "L1"), np.eye(2), [1, 1], [1]), "'L1': its scores come to rest"),
        (lambda: orbit([0, 1], [0, 0], [1], normalisation="softpick"), "'softpick': its scores come to rest"),
        (lambda: orbit([0, 1], [0, 0], [1], normalisation="softmax_sink"), "1 parameter of softmax_sink"),
        (lambda: orbit([0, 1], [0, 0], [1], normalisation="entmax", option=2.1), "option is 2.1"),
        (lambda: orbit([0, 1], [0, 0], [1], normalisation="max"), "normalisation is 'max': choose"),
        (
            lambda: reduce(flow(value_softmax("square", [0, 0]), np.eye(2), [0, 0], [1])),
            "‖β‖² of the target is 0",
        ),
        (lambda: flow(value_softmax("regression", [1], X=[[1]]), [[1, 2]], [1, 1], [1]).u, "has no β"),
    ],
)
def test_wrong_input_is_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call()
