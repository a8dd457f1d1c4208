"""α-entmax under the flow: exponents, exits, sparsemax's closed form, on random starts."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from src.value_softmax.beyond import entmax
from src.value_softmax.flow import orbit

SLOPES = np.geomspace(1, 1e5, 600)


def start(seed: int, n: int, size: float = 0.1) -> np.ndarray:
    """u (n), normal of that size."""
    return size * np.random.default_rng(seed).normal(size=n)


@given(seed=st.integers(0, 10**6), n=st.integers(2, 8), alpha=st.sampled_from([1.1, 1.25, 1.4, 1.5, 1.6, 1.75, 2.0]))
@settings(max_examples=15)
def test_order_and_gaps_are_kept_from_any_start(seed, n, alpha):
    run = entmax.losers(start(seed, n), alpha, np.linspace(0, 8, 60))
    assert entmax.order_margin(run) > -1e-14
    assert entmax.gap_margin(run) > -1e-12
    assert run.s[-1].argmax() == run.u[0].argmax()


@pytest.mark.parametrize("alpha", [1.1, 1.4, 1.5, 1.6, 2.0])
def test_the_solver_meets_the_general_one(alpha):
    u, tau = start(3, 4), np.linspace(0, 6, 20)
    run = entmax.losers(u, alpha, tau)
    general = orbit(u, np.zeros(4), tau, normalisation="entmax", option=alpha)
    np.testing.assert_allclose(run.s, general.s, atol=1e-7)
    np.testing.assert_allclose(run.u, general.u, atol=1e-7)


def test_equal_losers_stay_equal_and_leave_together():
    run = entmax.losers([0.3, 0.0, 0.0, -0.1], 1.75, np.linspace(0, 6, 30))
    np.testing.assert_array_equal(run.s[:, 1], run.s[:, 2])
    assert run.exits[1] == run.exits[2] > run.exits[3]
    np.testing.assert_allclose(run.s.sum(1), 1, atol=1e-14)


@pytest.mark.parametrize("alpha", [1.0, 1.25, 1.4, 1.5, 1.75, 2.0])
def test_two_scores_obey_their_law(alpha):
    u, tau = np.array([0.1, -0.05]), np.linspace(0, 2, 8)
    run = orbit(u, [0, 0], tau, tol=1e-10) if alpha == 1 else entmax.losers(u, alpha, tau)
    assert entmax.two_score_departure(run, alpha) < 1e-7


def test_the_law_of_two_scores_in_closed_form():
    y = 0.1
    r = y * (1 - y)
    assert entmax.two_score_law(y, 1.0) == pytest.approx(1 / r - 4, rel=1e-10)
    assert entmax.two_score_law(y, 1.5) == pytest.approx(-np.log(4 * r) + 2 - 4 * r**0.5, rel=1e-10)
    assert entmax.two_score_law(y, 2.0) == pytest.approx(1 - 4 * r, rel=1e-10)


@pytest.mark.parametrize(("alpha", "within"), [(1.1, 0.06), (1.3, 0.06), (1.4, 0.15)])
@pytest.mark.parametrize("n", [2, 5, 12])
def test_below_three_halves_the_runner_up_falls_like_a_power(n, alpha, within):
    run = entmax.losers(start(n, n), alpha, SLOPES)
    assert entmax.fitted_exponent(run) == pytest.approx(entmax.tail_exponent(alpha), rel=within)


def test_the_constant_of_the_power_at_two_scores():
    """y ~ ((3-2α) Δ²)^{-1/(3-2α)}: 4/τ⁴ at α = 1.25, with Δ for τ."""
    run = entmax.losers([0.1, -0.1], 1.25, [1e3])
    gap = run.u[0, 0] - run.u[0, 1]
    assert run.s[0, 1] == pytest.approx(4 / gap**4, rel=1e-4)
    assert run.s[0, 1] / 4e-12 - 1 == pytest.approx(0.0145, abs=0.001)  # in τ it is off by what the start has cost


@pytest.mark.parametrize("n", [2, 4])
def test_at_three_halves_the_runner_up_falls_like_a_gaussian(n):
    run = entmax.losers(start(n, n), 1.5, np.linspace(1, 12, 300))
    assert entmax.critical_slope(run) == pytest.approx(1, abs=0.01)


def test_tied_losers_at_three_halves_fall_with_half_their_number():
    """(n/2) Δ²/‖β‖²: 1.989 for n = 4."""
    run = entmax.losers([0.1, 0.0, 0.0, 0.0], 1.5, np.linspace(1, 12, 300))
    assert entmax.critical_slope(run) == pytest.approx(2, abs=0.03)


@pytest.mark.parametrize(("n", "alpha"), [(3, 1.15), (3, 1.24), (3, 1.26), (4, 1.2)])
def test_near_ties_of_losers_spread_like_a_power(n, alpha):
    """κ, whose sign is that of α - 1 - 1/(n_eff + 1)."""
    u = np.r_[0.0, -0.1 * np.ones(n - 1)] - 1e-7 * np.arange(n)
    tau = np.geomspace(1e3, 1e5, 8)
    run = entmax.losers(u, alpha, tau)
    spread = np.log(run.s[:, 1] / run.s[:, -1])
    kappa = np.polyfit(np.log(tau), np.log(spread), 1)[0]
    assert kappa == pytest.approx(entmax.spread_exponent(alpha, n), abs=0.01)


@pytest.mark.parametrize(("alpha", "leave"), [(1.2, False), (1.4, True)])
def test_from_five_fourths_on_one_loser_is_left(alpha, leave):
    """Three scores: the last loser leaves in finite τ for α > 5/4 and stays for α < 5/4, where the tie is stable."""
    run = entmax.losers([0.1, 0.05, -0.05], alpha, [1e4])
    assert np.isfinite(run.exits[2]) == leave
    assert np.isinf(run.exits[1])


@given(seed=st.integers(0, 10**6), n=st.integers(2, 12), alpha=st.floats(1.55, 2.0))
@settings(max_examples=6)
def test_beyond_three_halves_every_start_is_one_hot_in_finite_time(seed, n, alpha):
    u = start(seed, n)
    tau = entmax.one_hot(u, alpha)
    before, after = entmax.losers(u, alpha, [tau * 0.999, tau * 1.001]).s
    assert 0.5 < tau < 25
    assert np.sort(before)[-2] > 0
    np.testing.assert_array_equal(after, np.eye(n)[u.argmax()])


def test_two_scores_are_one_hot_when_the_law_says():
    u, alpha = np.array([0.1, -0.05]), 1.75
    gap = entmax.losers(u, alpha, [entmax.one_hot(u, alpha)]).u[0]
    assert (gap[0] - gap[1]) ** 2 == pytest.approx(0.15**2 + entmax.two_score_law(0, alpha), rel=1e-7)
    assert entmax.one_hot(u, 1.5) == np.inf


@given(seed=st.integers(0, 10**6), n=st.integers(2, 12), beta_sq=st.sampled_from([1.0, 2.5]))
@settings(max_examples=12)
def test_sparsemax_is_solved(seed, n, beta_sq):
    u = start(seed, n)
    tau = np.linspace(0, 1.1 * entmax.sparsemax_one_hot(u, beta_sq=beta_sq), 30)
    run = entmax.losers(u, 2.0, tau, beta_sq=beta_sq)
    np.testing.assert_allclose(run.s, entmax.sparsemax_flow(u, tau, beta_sq=beta_sq), atol=1e-8)
    assert entmax.one_hot(u, 2.0, beta_sq=beta_sq) == pytest.approx(tau[-1] / 1.1, abs=1e-8)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: entmax.losers([1, 0], 0.5), "alpha is 0.5"),
        (lambda: entmax.losers([1, 0], 1), "alpha is 1: that is softmax"),
        (lambda: entmax.losers([1, 1, 0], 1.5), "u holds its largest entry 1.0 2 times"),
        (lambda: entmax.losers([1, 0], 1.5, [1, 1]), "tau does not increase"),
        (lambda: entmax.one_hot([1, 0], 2.1), "alpha is 2.1"),
        (lambda: entmax.tail_exponent(1.5), r"alpha is 1.5: it must be a number in \[1, 1.5\)"),
        (lambda: entmax.sparsemax_one_hot([1, 1]), "u holds 1.0 twice"),
        (lambda: entmax.two_score_law(0.6, 1.5), "y is 0.6"),
        (lambda: entmax.fitted_exponent(entmax.losers([1, 0], 1.25, [1, 2])), "0 records have the runner-up"),
    ],
)
def test_wrong_input_is_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call()
