"""Sign descent solved; Adam's rates and its winner; what weight decay and ε do to them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from src.value_softmax.beyond import adam, sign
from src.value_softmax.descent import descend, rule
from src.value_softmax.kernels import LOSSES, TABLE
from src.value_softmax.model import value_softmax

ONE = value_softmax("logistic", [1.0])


@given(seed=st.integers(0, 10**6), n=st.integers(2, 16), lr=st.sampled_from([3e-3, 1e-2, 3e-2]))
@settings(max_examples=15)
def test_sign_descent_is_solved(seed, n, lr):
    """To a gap of 40 nats and more, where u_i - ū is far below the rounding of ū."""
    model = value_softmax("logistic", np.full(2, 0.5**0.5))
    V = 0.1 * np.random.default_rng(seed).normal(size=(2, n))
    run = descend(model, V, np.zeros(n), steps=int(25 / lr), lr=lr, optimizer="sign")
    assert sign.law_departure(run, lr) < 1e-6
    assert sign.column_departure(run) < 1e-11
    a = np.sort(run.a[-1])
    assert a[-1] - a[-2] > 31  # the naive difference loses its sign here
    assert run.s[-1].argmax() == run.u[0].argmax()


def test_sign_descent_by_hand():
    """Two scores: the loser never rises, and the winner always does."""
    np.testing.assert_array_equal(sign.turning_steps([0.2, 0.1], 0.01), [np.inf, 0])
    # δ = (0, 1, 3): D(0) = 4/3, so score 1 rises first. It turns when e^{2t} = e^0 (3 - 1) / 1
    np.testing.assert_allclose(sign.turning_times([3.0, 2.0, 0.0]), [np.inf, np.log(2) / 2, 0])
    np.testing.assert_array_equal(sign.turning_times([1.0, 1.0, 0.0]), [np.inf, np.inf, 0])


def test_the_sign_flow_is_the_limit_of_sign_descent():
    u, a = np.array([0.3, 0.1, -0.05, 0.25]), np.array([0.1, 0.0, 0.2, -0.1])
    t = np.linspace(0, 3, 7)
    exact_u, exact_a = sign.sign_flow(u, t, a=a)
    for lr in (1e-3, 1e-4):
        record = np.rint(t / lr).astype(int)
        run = descend(ONE, u[None], a, steps=record[-1], lr=lr, record=record, optimizer="sign")
        np.testing.assert_allclose(run.a, exact_a, atol=4 * lr)
        np.testing.assert_allclose(run.u, exact_u, atol=1e-9)


@pytest.mark.parametrize("name", LOSSES)
def test_columns_move_together_under_any_loss(draw_model, name):
    rng = np.random.default_rng(0)
    run = descend(draw_model(rng, name, 4), rng.normal(size=(4, 5)), np.zeros(5), steps=500, lr=1e-3, optimizer="sign")
    assert sign.column_departure(run) < 1e-11


def test_a_column_of_weight_zero_stays_behind():
    run = descend(
        value_softmax("logistic", [1.0], "entmax"), [[0.2, 0.0]], [0, 0], steps=3000, lr=1e-3, optimizer="sign"
    )
    gap, gone = np.diff(run.u)[:, 0], run.s[:, 1] == 0
    np.testing.assert_allclose(gap[~gone], -0.2, atol=1e-12)
    left = run.steps[gone] - run.steps[gone][0]
    np.testing.assert_allclose(gap[gone] - gap[gone][0], -1e-3 * left, atol=1e-12)


@pytest.mark.parametrize(("name", "rates"), [("softmax1", (1, 2)), ("softmax_sink", (2, 2))])
def test_outlets_close_exponentially_under_sign_descent(name, rates):
    model, lr = value_softmax("logistic", [1.0], name), 1e-2
    a = np.zeros(3 + TABLE[name].parameters)
    run = descend(model, [[0.3, 0.1, -0.1]], a, steps=1400, lr=lr, optimizer="sign", record=range(0, 1401, 20))
    np.testing.assert_allclose(sign.fall_rates(run, lr), rates, atol=0.1)


def test_the_square_loss_ends_sign_descents_polarization():
    """g changes sign: over 10 starts some winners are not argmax u(0), and entropy stays."""
    V = adam.starts(8, 8, 0.1, 10)
    model, won, entropy = value_softmax("square", np.full(8, 8**-0.5)), [], []
    for v in V:
        run = descend(model, v, np.zeros(8), steps=20_000, lr=1e-3, optimizer="sign")
        won.append(run.a[-1].argmax() == run.u[0].argmax())
        entropy.append(-(run.s[-1] * np.log(run.s[-1])).sum() / np.log(8))
    assert not all(won)
    assert min(entropy) > 0.5


def test_decay_leaves_sign_descent_polarized():
    decay, lr = 0.02, 1e-2
    run = descend(ONE, [[0.3, 0.1, -0.1]], np.zeros(3), steps=50_000, lr=lr, optimizer=rule("sign", decay=decay))
    assert sign.column_departure(run, 1 - lr * decay) < 1e-10
    assert run.a[-1, 0] - run.a[-1, 1] == pytest.approx(2 / decay, rel=1e-3)
    assert run.u[-1] == pytest.approx(1 / decay, rel=1e-3)


# Adam


def test_the_gain_on_an_exponential_is_measured():
    """One coordinate, gradients e^{-ρk}: steps of η φ(ρ), and none beyond ρ*."""
    for rho in (0.0, 1e-4, 4e-4):
        first = second = 0.0
        for k in range(40_000):
            g = np.exp(-rho * k)
            first, second = 0.9 * first + 0.1 * g, 0.999 * second + 0.001 * g * g
        assert first / second**0.5 == pytest.approx(adam.gain(rho), rel=0.02)
    assert adam.gain(5.1e-4) == 0


@pytest.mark.parametrize(("lr", "steps"), [(2.5e-5, 100_000), (1e-4, 30_000), (2.5e-4, 30_000)])
def test_gaps_grow_at_every_rate_of_adam(lr, steps):
    record = np.arange(0, steps + 1, 100)
    model = value_softmax("linear", [1.0])
    run = descend(model, [[0.1, -0.1]], [0, 0], steps=steps, lr=lr, record=record, optimizer=rule("adam", eps=0.0))
    fall, growth = adam.linear_rates(lr)
    _, measured_fall, measured_growth = adam.measured_rates(run)
    assert measured_fall / lr == pytest.approx(fall, rel=0.06)
    assert measured_growth / lr == pytest.approx(growth, rel=0.08)


@pytest.mark.parametrize("lr", [1e-3, 1e-2])
def test_adam_has_a_speed_limit(lr):
    model = value_softmax("logistic", np.full(8, 8**-0.5))
    record = np.arange(0, 20_001, 100)
    V = adam.starts(8, 8, 0.1, 1)[0]
    run = descend(model, V, np.zeros(8), steps=20_000, lr=lr, record=record, optimizer=rule("adam", eps=0.0))
    speed, *_ = adam.measured_rates(run, 0.2)
    assert speed == pytest.approx(adam.logistic_rates(lr, 8**0.5)[0], rel=0.01)
    assert speed < 1.002 * -0.5 * np.log(0.999)


@pytest.mark.parametrize(("lr", "steps"), [(2.5e-4, 24_000), (5e-4, 12_000), (1e-3, 8_000)])
def test_gaps_under_the_logistic_loss_grow_most_in_between(lr, steps):
    """Median of 8 starts, n = 8, last tenth: 0.45, 0.31, 0.17 of cη, with the term 1/k in theory."""
    model, growth = value_softmax("logistic", np.full(8, 8**-0.5)), []
    for v in adam.starts(8, 8, 0.1, 8):
        record, exact = np.arange(0, steps + 1, steps // 100), rule("adam", eps=0.0)
        run = descend(model, v, np.zeros(8), steps=steps, lr=lr, record=record, optimizer=exact)
        growth.append(adam.measured_rates(run)[2])
    assert np.median(growth) == pytest.approx(adam.logistic_rates(lr, 8**0.5, k=steps)[2], rel=0.2)


def test_eps_of_1e_8_changes_no_winner():
    V = adam.starts(8, 8, 0.1, COUNT)
    with_eps, without = (adam.winners(V, steps=4000, lr=1e-3, optimizer=rule("adam", eps=eps)) for eps in (1e-8, 0.0))
    np.testing.assert_array_equal(with_eps, without)


def test_before_its_memory_ends_adams_losers_fall_like_a_power():
    """γ constant, 1/η ≪ k ≪ 1/(1-β₂): s_j ~ k^{-5/2}."""
    slow = rule("adam", betas=(0.9, 1 - 1e-9), eps=0.0)
    record = np.geomspace(1e4, 1e6, 20).astype(int)
    model = value_softmax("linear", [1.0])
    run = descend(model, [[0.1, -0.1]], [0, 0], steps=10**6, lr=1e-2, record=record, optimizer=slow)
    slope = np.polyfit(np.log(record), np.log(run.s[:, 1]), 1)[0]
    assert slope == pytest.approx(-2.5, abs=0.03)


COUNT = 40


def share_won_by_the_largest(optimizer, lr: float, size: float = 0.1, n: int = 8) -> float:
    """Share of COUNT starts that argmax u(0) wins."""
    V = adam.starts(n, 8, size, COUNT)
    won = adam.winners(V, steps=max(200, int(4 / lr)), lr=lr, optimizer=optimizer)
    return float((adam.ranks(V, won)[0] == 0).mean())


@pytest.mark.parametrize(
    ("optimizer", "lr", "least", "most"),
    [
        ("adam", 1e-3, 0.0, 0.1),
        ("adam", 1e-2, 0.0, 0.1),
        ("adamw", 1e-3, 0.0, 0.1),
        (rule("adam", betas=(0.9, 0.95)), 1e-3, 0.95, 1.0),
        (rule("adam", betas=(0.9, 0.99)), 1e-4, 0.95, 1.0),
        ("adam", 0.1, 0.6, 1.0),
        (rule("adam", betas=(0.0, 0.999)), 0.1, 0.0, 0.1),  # ours: what restores it at 0.1 is the memory of β₁
        (rule("adam", betas=(0.999, 0.999)), 1e-3, 0.7, 1.0),  # and does at 1e-3, if it is as long
        ("sign", 1e-3, 1.0, 1.0),
        ("sgd", 1.0, 1.0, 1.0),
        ("momentum", 0.1, 1.0, 1.0),
    ],
)
def test_who_wins(optimizer, lr, least, most):
    steps = {"sgd": 1.0, "momentum": 0.1}.get(optimizer if isinstance(optimizer, str) else "")
    if steps:  # their time is lr × steps
        V = adam.starts(8, 8, 0.1, COUNT)
        won = adam.winners(V, steps=5000, lr=lr, optimizer=optimizer)
        share = (adam.ranks(V, won)[0] == 0).mean()
    else:
        share = share_won_by_the_largest(optimizer, lr)
    assert least <= share <= most


def test_large_gaps_and_two_scores_give_adam_the_flows_winner():
    assert share_won_by_the_largest("adam", 1e-3, size=1.0) > 0.9
    assert share_won_by_the_largest("adam", 1e-3, n=2) == 1


@pytest.mark.parametrize("n", [3, 4, 8])
def test_adams_winner_is_above_the_mean_and_the_largest_if_it_is_alone_there(n):
    V = adam.starts(n, 8, 0.1, COUNT, seed=1)
    place, above = adam.ranks(V, adam.winners(V, steps=4000, lr=1e-3))
    assert (place < above).all()
    assert (place[above == 1] == 0).all()
    assert n < 8 or (place == above - 1).mean() > 0.5  # mostly the one barely above


@pytest.mark.parametrize(("beta1", "lr"), [(0.9, 0.1), (0.97, 0.03), (0.99, 0.01)])
def test_the_first_moments_memory_against_the_rate_decides_the_winner(beta1, lr):
    """η/(1-β₁) = 1 restores argmax u(0), at any of these rates; at a tenth of it nothing does."""
    assert share_won_by_the_largest(rule("adam", betas=(beta1, 0.999)), lr) > 0.6
    assert share_won_by_the_largest(rule("adam", betas=(beta1, 0.999)), lr / 10) < 0.1


@pytest.mark.parametrize("decay", [0.01, 0.02])
def test_adamw_rests_where_decay_undoes_its_steps(decay):
    """ε = 1e-8 ends polarization at a gap of 5 to 7 nats, where sign descent would go to 2/λ."""
    optimizer = rule("adamw", eps=1e-8, decay=decay)
    run = descend(ONE, [[0.3, 0.1, -0.1]], np.zeros(3), steps=400_000, lr=1e-2, record=[400_000], optimizer=optimizer)
    assert adam.rest_departure(run, 1e-8, decay) < 1e-3
    a = np.sort(run.a[0])
    assert 5 < a[-1] - a[-2] < 8 < 2 / decay


def test_the_slow_memory_flow_has_adams_winners():
    """β₂ → 1, then η → 0: a flow without a learning rate, in which argmax u(0) does not win either."""
    V = adam.starts(8, 8, 0.1, 12)
    flows = [adam.slow_memory_flow(u, [0, 4.0], speed=8**0.5)[1][-1].argmax() for u in V.sum(1) / 8**0.5]
    slow = rule("adam", betas=(0.9, 0.99999), eps=0.0)
    won = adam.winners(V, steps=4000, lr=1e-3, optimizer=slow, loss="linear")
    assert (won == flows).mean() > 0.8
    assert (adam.ranks(V, np.array(flows))[0] == 0).mean() < 0.2


def test_wrong_input_is_refused():
    with pytest.raises(ValueError, match="lr is 0"):
        sign.turning_steps([0.1, 0.2], 0)
    with pytest.raises(ValueError, match="u is nan"):
        sign.turning_times([0.1, np.nan])
    with pytest.raises(ValueError, match="a has shape"):
        sign.turning_times([0.1, 0.2], [0.0])
    with pytest.raises(ValueError, match="loss is 'square': choose one of linear, logistic"):
        adam.slow_memory_flow([0.1, 0.2], [1.0], loss="square")
    with pytest.raises(ValueError, match="lr is -1"):
        adam.memory(-1)
