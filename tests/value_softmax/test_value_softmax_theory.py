"""Every statement the paper makes of the flow, on random starts; and what is not so, with counterexamples."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from src.value_softmax import runs, theory
from src.value_softmax.descent import descend
from src.value_softmax.flow import Orbit, flow, orbit, reduce, reduced_flow
from src.value_softmax.model import gradients, loss, value_softmax
from src.value_softmax.runs import attention_sink
from src.value_softmax.trajectory import entropy

LOG_T = np.linspace(-2, 60, 150)  # to t = 1e26


@st.composite
def starts(draw, most: int = 64) -> np.ndarray:
    """A start u (n) of 2 to `most` distinct entries in random order, its gaps between 0.01 and 2."""
    n = draw(st.integers(2, most))
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    size = draw(st.sampled_from([0.01, 0.1, 1.0]))
    u = rng.permutation(np.cumsum(rng.uniform(size, 2 * size, n)))
    return u - u.mean() + rng.uniform(-1, 1)


def from_zero(loss: str, u: np.ndarray, log_t: np.ndarray = LOG_T) -> Orbit:
    """The reduced flow from a(0) = 0, its start included."""
    run = reduced_flow(loss, u, np.zeros_like(u), log_t)
    return Orbit(np.r_[0, run.tau], np.vstack((u, run.u)), np.vstack((np.zeros_like(u), run.a)))


@given(u=starts())
@settings(max_examples=40)
def test_order_gaps_and_bound_hold_from_any_start(u):
    run = from_zero("logistic", u)
    assert theory.u_order_margin(run) > 0  # 3.2a
    assert theory.s_order_margin(run) > 0
    assert (theory.potential(run)[1:] > 0).all()
    assert theory.growth(theory.potential(run)) > 0
    assert theory.u_gap_growth(run) > 0  # 3.2b
    assert theory.exp_gap_growth(run) > 0
    assert theory.winner_a_growth(run) > 0
    assert theory.winner_s_growth(run) > 0
    assert theory.ratio_bound_margin(run) > 0  # 3.3b
    assert theory.sum_of_scores_departure(run) < 1e-10
    assert theory.sum_of_u_departure(run) < 1e-7


@given(u=starts(most=16))
@settings(max_examples=20)
def test_logistic_loss_vanishes_and_the_weights_polarize(u):
    log_t = np.array([1e2, 1e3, 1e4])
    run = reduced_flow("logistic", u, np.zeros_like(u), log_t)
    assert np.abs(theory.loss_decay(run, log_t)[1:]).max() < 0.05  # 3.3a: L ~ 1/t
    clock = theory.clock_ratio(run, log_t)
    assert np.abs(clock[-1] - 1) < 0.02  # 3.3c: ∫γ ~ log t
    assert abs(clock[-1] - 1) < abs(clock[0] - 1) + 1e-6
    winner = run.s[:, u.argmax()]
    assert (np.diff(winner) > 0).all()
    assert winner[-1] > 1 - 1e-4


def test_the_bound_of_3_3b_is_loose():
    """On the paper's start at t = 1e8: 0.99 against a true ratio of 0.002 at most."""
    setup = runs.logistic()["Softmax"]
    truth, bound = theory.ratio_bound(from_zero("logistic", setup.V.T @ setup.model.target, [np.log(1e8)]))
    assert bound[-1] == pytest.approx(0.989, abs=1e-3)
    assert truth[-1].max() == pytest.approx(0.00185, abs=1e-5)


@given(u=starts(most=8))
@settings(max_examples=25)
def test_conjecture_on_the_tail_holds(u):
    """s_j ~ 2 / (n ‖β‖² τ²): the ratio nears 1 like τ^(-2/n), seen from n = 2 to 8 and up to τ = 1e24."""
    tau = np.geomspace(1e15, 1e24, 4)
    off = np.abs(theory.tail_ratio(orbit(u, np.zeros_like(u), tau)) - 1).max(1)
    assert (off[1:] < 1.2 * off[:-1] * 1e3 ** (-2 / len(u)) + 1e-6).all()
    assert off[-1] < 0.01


def test_the_tail_carries_the_norm_of_beta():
    tail = theory.tail_ratio(orbit([0.2, 0.1, -0.3], np.zeros(3), [1e9], beta_sq=2.5))
    np.testing.assert_allclose(tail, 1, atol=1e-4)


def test_gaps_of_a_and_s_do_not_always_grow():
    """Claimed in passing at the end of 3.2's proof. Two losers draw together again: n = 3 is enough."""
    run = from_zero("logistic", np.array([0.3, 0.0, -0.2]))
    gap_a, gap_s = run.a[:, 1] - run.a[:, 2], run.s[:, 1] - run.s[:, 2]
    assert gap_a.max() > 0.3 > 3 * gap_a[-1] > 0
    assert gap_s.max() > 0.05 > 100 * gap_s[-1] > 0
    assert theory.a_gap_growth(run) < -1e-3
    assert theory.s_gap_growth(run) < -1e-3


@given(u=starts())
@settings(max_examples=15)
def test_gaps_of_a_and_s_grow_for_two_and_shrink_somewhere_for_more(u):
    run = from_zero("logistic", u)
    for claim in (theory.a_gap_growth, theory.s_gap_growth):
        assert claim(run) > 0 if len(u) == 2 else claim(run) < -1e-3


@given(u=starts(most=16))
@settings(max_examples=20)
def test_the_printed_sign_raises_the_loss(u):
    t = np.linspace(0, 5, 6)
    assert (np.diff(theory.loss_under_sign(u, np.zeros_like(u), t, -1)) > 0).all()
    assert (np.diff(theory.loss_under_sign(u, np.zeros_like(u), t, 1)) < 0).all()


def test_the_chain_rule_has_the_plus_sign():
    rng = np.random.default_rng(0)
    beta, V, a = np.array([0.6, 0.8]), rng.normal(size=(2, 4)), rng.normal(size=4)
    model = value_softmax("logistic", beta)
    dV, da = gradients(model, V, a)
    s = np.exp(a) / np.exp(a).sum()
    u = V.T @ beta
    gamma = 1 / (1 + np.exp(s @ u))
    np.testing.assert_allclose(-dV.T @ beta, gamma * s, rtol=1e-12)
    np.testing.assert_allclose(-da, gamma * s * (u - s @ u), rtol=1e-12)
    stray = gamma * s * (u - gamma * (s @ u))  # the bracket of 3.2's proof, with its stray γ
    assert np.abs(stray + da).max() > 0.01
    differences = np.diff(np.exp(-a) * stray), np.diff(np.exp(-a) * -da)  # which it leaves as they are
    np.testing.assert_allclose(*differences, rtol=1e-10)


@pytest.mark.parametrize("name", ["logistic", "square", "regression", "cross-entropy"])
def test_lemma_d2_holds_with_the_jacobian_squared(draw_model, name):
    rng = np.random.default_rng(2)
    model, V, a = draw_model(rng, name, 4), rng.normal(size=(4, 5)), rng.normal(size=5)
    dV, da = (torch.tensor(-x) for x in gradients(model, V, a))
    state = torch.tensor(V), torch.tensor(a)
    _, ds = torch.func.jvp(lambda a: torch.softmax(a, 0), state[1:], (da,))
    _, d_beta = torch.func.jvp(lambda V, a: V @ torch.softmax(a, 0), state, (dV, da))
    ours = theory.velocities(model, V, a)
    np.testing.assert_allclose(ours[0], ds, rtol=1e-10, atol=1e-14)
    np.testing.assert_allclose(ours[1], d_beta, rtol=1e-10, atol=1e-14)
    s = np.exp(a) / np.exp(a).sum()  # the line printed without the square is another velocity
    printed = da.numpy() @ (np.diag(s) - np.outer(s, s)) / s
    assert np.abs(printed - ds.numpy()).max() > 1e-3 * np.abs(ds.numpy()).max()


def test_invariants_of_the_full_flow_and_of_descent():
    rng = np.random.default_rng(4)
    model = value_softmax("logistic", np.array([2, 3, 6]) / 7)
    V, a = rng.normal(size=(3, 5)), rng.normal(size=5)
    for run in (flow(model, V, a, np.geomspace(0.1, 1e4, 30)), descend(model, V, a, steps=10_000, lr=0.1)):
        assert theory.orthogonal_departure(run) < 1e-7
        assert theory.sum_of_scores_departure(reduce(run)) < 1e-7
        assert np.ptp(run.u[:, 0]) > 1  # while something moves


@given(u=starts(most=16))
@settings(max_examples=20)
def test_square_loss_polarizes_in_part_only(u):
    u = 0.1 * (u - u.mean())
    tau, s = theory.square_limit(u)
    assert 0 < tau <= len(u) - u.sum() + 1e-6
    assert s.argmax() == u.argmax()
    assert s.min() > 0
    assert s.max() < 0.9 if len(u) > 2 else s.max() < 0.95
    assert theory.u_order_margin(from_zero("square", u, np.linspace(-3, 1, 20))) > 0


def test_square_loss_from_a_small_start_hardly_polarizes():
    u = 0.02 * np.random.default_rng(0).normal(size=8) + 0.025
    tau, s = theory.square_limit(u)
    assert tau == pytest.approx(7.8, abs=0.15)
    assert entropy(s) == pytest.approx(2.077, abs=0.003)


def test_worse_conditioned_regressions_polarize_more():
    entropies = [entropy(trajectory.s[-1]) for trajectory in runs.run("condition_numbers").values()]
    assert (np.diff(entropies) < 0).all()
    assert entropies[0] > 0.99 * np.log(20)
    assert entropies[-1] < 0.15 * np.log(20)


@pytest.mark.parametrize("scale", [0.0, 0.1, 0.3])
def test_attention_sinks_in_one_column_from_small_scores(scale):
    column, least = theory.sink(attention_sink(scale, np.geomspace(1, 1e14, 30)).s)
    assert least[-1] > 0.85
    assert (np.diff(least[15:]) > 0).all()


def test_attention_from_scores_of_size_one_sinks_in_several_columns():
    """A counterexample to "every row, the same column" from any start: rows keep columns of their own."""
    run = attention_sink(1.0, np.geomspace(1, 1e14, 30))
    _, least = theory.sink(run.s)
    assert least[-1] < 1e-3
    assert len(set(run.s[-1].argmax(1))) == 6
    assert np.sort(run.s[-1].max(1))[2] > 0.9  # polarized all the same


def test_checks_refuse_starts_that_they_are_not_for():
    tied = orbit([0.1, 0.1, 0.3], np.zeros(3), [0.0, 1.0])
    with pytest.raises(ValueError, match="holds 0.1 twice"):
        theory.u_order_margin(tied)
    scored = orbit([0.1, 0.2, 0.3], [1.0, 0.0, 0.0], [0.0, 1.0])
    with pytest.raises(ValueError, match="start at zero scores"):
        theory.ratio_bound(scored)
    with pytest.raises(ValueError, match="Lemma D.2 is of"):
        theory.velocities(value_softmax("square", [1.0, 0.0], "L1"), np.eye(2), [1.0, 2.0])
    with pytest.raises(ValueError, match="sign is 2"):
        theory.loss_under_sign([0.1], [0.0], [1.0], 2)


def test_margins_by_hand():
    """Two records, the winner second: margins of numbers that can be checked by eye."""
    u, a = np.array([[0.0, 1.0], [0.5, 3.0]]), np.array([[0.0, 0.0], [-np.log(2), np.log(2)]])
    hand = Orbit(np.array([0.0, 2.0]), u, a)
    assert theory.u_order_margin(hand) == 1
    assert theory.s_order_margin(hand) == pytest.approx(2 * np.log(2))
    assert theory.u_gap_growth(hand) == pytest.approx(1.5 / 2.5)
    assert theory.growth(np.array([[2.0, 1.0], [3.0, 0.5]])) == -0.5
    np.testing.assert_allclose(theory.potential(hand), [[0.0], [1.5 * 2.5]])
    truth, bound = theory.ratio_bound(hand)
    np.testing.assert_allclose(truth, [[1.0], [0.25]])
    np.testing.assert_allclose(bound, [1.0, 0.5])
    assert theory.sum_of_u_departure(hand) == 0.5
    np.testing.assert_allclose(theory.tail_ratio(hand)[1], 0.2 * 2 * 4 / 2)
    assert loss(value_softmax("logistic", [1.0]), [0.0]) == pytest.approx(np.log(2))
