"""The reduced system under every map; outlets; sigmoid, relu_mean, softpick, clipping, gates, ssmax; decay."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from src.value_softmax.beyond import others, outlets, reduced
from src.value_softmax.descent import descend, rule
from src.value_softmax.flow import flow, orbit
from src.value_softmax.kernels import LOSSES, NORMALISATIONS, TABLE
from src.value_softmax.model import value_softmax

FLOWING = [name for name in NORMALISATIONS if not TABLE[name].slides]
SYMMETRIC = ("Softmax", "softmax1", "entmax", "Sigmoid", "relu_mean")
BETA = np.full(4, 0.5)


def run(name: str, seed: int, n: int, end: float = 3.0):
    """An orbit from random positive scores, 40 records."""
    rng = np.random.default_rng(seed)
    a = 1 + 0.1 * rng.normal(size=n + TABLE[name].parameters)
    return orbit(0.3 * rng.normal(size=n), a, np.linspace(0, end, 40), normalisation=name)


@pytest.mark.parametrize("name", FLOWING)
@given(seed=st.integers(0, 10**6), n=st.integers(2, 8))
@settings(max_examples=5)
def test_the_mean_never_falls_and_the_sum_of_u_is_that_of_the_weights(name, seed, n):
    path = run(name, seed, n)
    assert reduced.mean_growth(path) > 0
    assert reduced.sum_departure(path) < 1e-6


@pytest.mark.parametrize("name", ["L1", "softpick"])
def test_the_mean_never_falls_in_descent_where_there_is_no_flow(name):
    V, a = 0.3 * np.random.default_rng(0).normal(size=(4, 5)), np.linspace(0.5, 1, 5)
    path = descend(value_softmax("logistic", BETA, name), V, a, steps=200, lr=1e-3)
    assert reduced.mean_growth(path) > 0


@pytest.mark.parametrize("name", [name for name in NORMALISATIONS if TABLE[name].parameters == 0])
def test_which_jacobians_are_symmetric(name):
    rng = np.random.default_rng(0)
    worst = max(reduced.asymmetry(name, 1 + rng.normal(size=6)) for _ in range(20))
    assert worst < 1e-15 if name in SYMMETRIC else worst > 1e-2


@pytest.mark.parametrize("name", FLOWING)
def test_which_sums_and_norms_of_scores_are_constant(name):
    path = run(name, 1, 5)
    shifts = ("Softmax", "entmax", "softmax_clipped", "softmax_sink")  # J 1 = 0; the sink's b included
    assert (reduced.score_sum_departure(path) < 1e-10) == (name in shifts)
    assert (reduced.score_norm_departure(path) < 1e-8) == (name in ("Sum", "L2", "ReLU"))


def test_the_square_loss_reduces_only_from_rank_one():
    rng = np.random.default_rng(0)
    model = value_softmax("square", [1.0, 2.0, -0.5])
    V, a = rng.normal(size=(3, 4)), rng.normal(size=4)
    assert reduced.square_departure(model, V, a, extra=False) > 0.01
    assert reduced.square_departure(model, V, a, extra=True) < 1e-14
    rank_one = np.outer(model.target, [0.3, 0.1, -0.2, 0.0])
    assert reduced.square_departure(model, rank_one, a, extra=False) < 1e-14


@pytest.mark.parametrize("name", LOSSES)
def test_the_gradients_direction_turns_but_for_logistic_and_linear(draw_model, name):
    rng = np.random.default_rng(0)
    run = descend(draw_model(rng, name, 4), rng.normal(size=(4, 5)), np.zeros(5), steps=200, lr=0.05)
    assert (reduced.turning(run) < 1e-12) == (name in ("logistic", "linear"))


def test_the_order_needs_a_start_at_zero_scores():
    """u(0) a third of a(0): argmax u(0) wins in a fifth of 40 starts, under the flow itself."""
    rng = np.random.default_rng(0)
    starts = [(0.1 * rng.normal(size=8), 0.3 * rng.normal(size=8)) for _ in range(40)]
    won = [orbit(u, a, [100.0]).s[-1].argmax() == u.argmax() for u, a in starts]
    assert 0 < np.mean(won) < 0.5


# Outlets


@pytest.mark.parametrize("name", outlets.OUTLETS)
@given(seed=st.integers(0, 10**6), n=st.integers(2, 8))
@settings(max_examples=8)
def test_an_outlet_only_closes_from_a_mean_above_zero(name, seed, n):
    u = np.random.default_rng(seed).normal(size=n)
    u -= min(0, u.mean() - 0.01)
    path = orbit(u, np.zeros(n + TABLE[name].parameters), np.r_[0, np.geomspace(1e-2, 1e6, 80)], normalisation=name)
    assert outlets.closing_margin(path) > -1e-9
    assert path.s[-1].argmax() == u.argmax()


@pytest.mark.parametrize("n", [1, 2, 8])
def test_how_fast_outlets_close(n):
    u = np.linspace(0.2, 0.1, n)
    path = orbit(u, np.zeros(n + 1), [1e32], normalisation="softmax_sink")
    assert outlets.closing_ratio(path)[0] == pytest.approx(1, abs=1e-3)
    assert path.a[0, -1] == pytest.approx(-2 / (n + 1) * np.log(1e32), rel=0.02)
    assert n == 1 or outlets.loser_ratio(path)[0] == pytest.approx(1, abs=1e-3)
    path = orbit(u, np.zeros(n), [1e16, 1e64], normalisation="softmax1")
    early, late = outlets.closing_ratio(path)
    assert 0.9 < late < 1 + 1e-7
    assert late >= early - 1e-7  # from below
    if n > 1:
        logs = outlets.loser_ratio(path) * np.log(path.tau**2 / 2)
        assert 1 < logs[1] < logs[0]


@pytest.mark.parametrize("name", outlets.OUTLETS)
@pytest.mark.parametrize(("v", "n"), [(4.0, 1), (3.0, 2), (2.0, 4)])
def test_from_below_zero_the_outlet_lives_exponentially_long(name, v, n):
    tau = np.r_[0, np.geomspace(0.1, 1e12, 800)]
    path = orbit(np.full(n, -v), np.zeros(n + TABLE[name].parameters), tau, normalisation=name)
    invariant = outlets.tied_invariant(path)
    away = tau < outlets.lifetime(path)
    np.testing.assert_allclose(invariant[away], invariant[0], atol=1e-6)
    score = path.a[:, 0] - (path.a[:, n] if path.a.shape[1] > n else 0)
    assert score.min() == pytest.approx(outlets.lowest_score(v, n, name), abs=0.01)
    assert np.log(outlets.lifetime(path)) == pytest.approx(-score.min(), abs=2)
    assert (path.s[-1].sum() > 0.9) == (outlets.lifetime(path) < 1e11)


@given(seed=st.integers(0, 10**6), n=st.integers(2, 5))
@settings(max_examples=6)
def test_in_the_end_the_keys_win_also_from_below(seed, n):
    u = -2 + 0.2 * np.random.default_rng(seed).normal(size=n)
    path = orbit(u, np.zeros(n), np.r_[0, np.geomspace(1, 1e12, 40)], normalisation="softmax1")
    assert path.s[-1].argmax() == u.argmax()
    assert path.s[-1].max() > 0.9


def test_a_trained_sink_does_not_open_within_a_million_steps():
    """u(0) = -3‖β‖, n = 8, γ < 1: at t < τ = 1e6 the keys have 6e-8 each, on their way down to e^-32."""
    path = orbit(np.full(8, -3.0), np.zeros(9), [1e6], normalisation="softmax_sink")
    assert outlets.log_shares(path)[1].max() < -16


def test_sign_descent_has_no_such_wait():
    n, lr, c = 8, 1e-2, 8**0.5
    V = np.full((8, n), -3.0) * 8**-0.5 + 0.01 * np.random.default_rng(0).normal(size=(8, n))
    model = value_softmax("logistic", np.full(8, 8**-0.5), "softmax_sink")
    steps = round(3.2 / (c * lr))
    path = descend(model, V, np.zeros(n + 1), steps=steps, lr=lr, optimizer="sign")
    assert (path.s[-1] * path.u[-1]).sum() > 0


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: outlets.closing_ratio(run("Softmax", 0, 2)), "normalisation is 'Softmax': choose one of softmax1"),
        (lambda: outlets.lowest_score(-1.0, 2, "softmax1"), "v is -1"),
        (lambda: others.critical_decay(0), "n is 0"),
        (lambda: others.decayed([0.1, 0.2], -0.1, [1.0]), "decay is -0.1"),
        (lambda: others.clipping_keys(0.1), "gamma is 0.1"),
        (lambda: others.momentum_departure(None, None, None, lr=0.1, t=1, momentum=1.0), "momentum is 1.0"),
    ],
)
def test_wrong_input_is_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call()


# Other maps


def test_sigmoid_does_not_polarize():
    path = orbit([0.3, -0.5, 0.0], np.zeros(3), np.r_[0, np.geomspace(1e-2, 1e5, 80)], normalisation="Sigmoid")
    invariant = others.sigmoid_invariant(path)
    np.testing.assert_allclose(invariant[path.tau < 10], np.tile(invariant[0], ((path.tau < 10).sum(), 1)), atol=1e-6)
    np.testing.assert_allclose(others.sigmoid_ratio(path)[-1], 1, atol=1e-3)


def test_sigmoid_comes_back_after_an_exponential_time():
    v = 5.0
    path = orbit([-v], [0.0], np.geomspace(1, 1e8, 2000), normalisation="Sigmoid")
    back = path.tau[np.flatnonzero(path.u[:, 0] > 0)[0]]
    assert np.log(back) == pytest.approx(v**2 / 2 - 1, abs=1.5)


def test_relu_mean_is_linear_until_scores_die():
    rng = np.random.default_rng(2)
    u, a = rng.normal(size=5), np.abs(rng.normal(size=5))
    tau = np.linspace(0, 40, 30)
    path = orbit(u, a, tau, normalisation="relu_mean", tol=1e-10)
    law = others.relu_mean_flow(u, a, tau)
    assert 0 < (law[-1] == 0).sum() < 5
    np.testing.assert_allclose(5 * path.s, law, rtol=1e-6, atol=1e-6)
    shares = path.s[-1] / path.s[-1].sum()
    np.testing.assert_allclose(shares, others.relu_mean_limit(u, a), atol=1e-6)
    still = orbit(u, np.zeros(5), [10.0], normalisation="relu_mean")
    np.testing.assert_array_equal(still.a, 0)


@given(seed=st.integers(0, 10**6), n=st.integers(2, 8))
@settings(max_examples=15)
def test_softpick_lives_from_a_mean_above_zero(seed, n):
    rng = np.random.default_rng(seed)
    u, a = rng.normal(size=n), rng.normal(size=n)
    path = descend(value_softmax("logistic", [1.0], "softpick"), u[None], a, steps=1000, lr=0.05)
    if path.s[0] @ u > 0.01:
        assert not others.died(path)


def test_softpick_dies_from_a_mean_below_zero_and_at_zero_scores():
    model = value_softmax("logistic", [1.0], "softpick")
    assert others.died(descend(model, [[-2.0, -1.0]], [0.5, -0.5], steps=500, lr=0.05))
    path = descend(model, [[2.0, 1.0]], [0.0, 0.0], steps=500, lr=0.05)
    np.testing.assert_array_equal(path.V[-1], path.V[0])


def test_clipped_softmax_is_dead_at_uniform_attention_over_35_keys():
    assert others.clipping_keys() == 35
    V = np.random.default_rng(0).normal(size=(4, 35))
    path = descend(value_softmax("logistic", BETA, "softmax_clipped"), V, np.zeros(35), steps=100, lr=1.0)
    np.testing.assert_array_equal(path.V[-1], V)


def test_a_gate_changes_the_clock_alone():
    for gate in (0.0, -2.0):
        assert others.gated_departure([0.3, 0.1, -0.2], np.geomspace(0.1, 1e4, 15), gate=gate) < 1e-7


def test_ssmax_keeps_its_invariant():
    n = 5
    a = np.r_[np.zeros(n), 1 / np.log(n)]
    path = orbit(0.3 * np.random.default_rng(0).normal(size=n), a, np.geomspace(0.1, 20, 40), normalisation="ssmax")
    assert np.ptp(others.ssmax_invariant(path)) < 1e-7
    assert others.ssmax_departure(path) < 1e-7


def test_momentum_is_the_flow_at_a_time_ten_times_as_fast():
    V = 0.1 * np.random.default_rng(0).normal(size=(4, 6))
    model = value_softmax("logistic", BETA)
    off = [others.momentum_departure(model, V, np.zeros(6), lr=lr, t=100) for lr in (1e-2, 1e-3)]
    assert off[0] < 0.05
    assert off[0] / off[1] == pytest.approx(10, rel=0.3)  # the error is of the order of the learning rate


@pytest.mark.parametrize("norm", [1.0, 2.0])
@pytest.mark.parametrize("n", [2, 4, 8])
def test_weight_decay_has_a_sharp_threshold_under_the_flow(n, norm):
    u = 0.01 * np.random.default_rng(1).normal(size=n)
    critical = others.critical_decay(n, norm)
    above, below = (others.decayed(u, f * critical, [0, 1e5], norm=norm).s[-1].max() * n for f in (1.05, 0.95))
    assert above == pytest.approx(1, abs=1e-6)
    assert below > 1.05


def test_below_the_threshold_polarization_is_partial():
    """λ = 0.01, n = 8: max s = 0.79, where a_i = (γ/λ)² ‖β‖² s_i (s_i - ‖s‖²)."""
    end = others.decayed(0.1 * np.random.default_rng(1).normal(size=8), 0.01, [0, 1e5])
    s, u = end.s[-1], end.u[-1]
    assert s.max() == pytest.approx(0.79, abs=0.005)
    gamma = 1 / (1 + np.exp(s @ u))
    np.testing.assert_allclose(end.a[-1], (gamma / 0.01) ** 2 * s * (s - s @ s), atol=1e-5)


def test_decay_under_descent_is_that_of_the_flow():
    u = np.array([0.1, -0.1, 0.0])
    run = descend(
        value_softmax("logistic", [1.0]), u[None], np.zeros(3), steps=4000, lr=0.01, optimizer=rule(decay=0.02)
    )
    np.testing.assert_allclose(run.s[-1], others.decayed(u, 0.02, [0, 40.0]).s[-1], atol=2e-3)
    full = flow(value_softmax("logistic", [1.0]), u[None], np.zeros(3), [40.0])
    assert np.abs(full.s[-1] - run.s[-1]).max() > 0.02
