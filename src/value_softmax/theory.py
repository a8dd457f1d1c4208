"""What the paper proves or claims of the flow, each as a function from a trajectory to a measured margin.

A margin is positive where the statement holds, by that much. Statements on an `Orbit` take coordinates by
falling u(0): the winner first. For gaps between coordinates it is enough to look at neighbours in that order,
every other gap being a sum of theirs. "Grows" is measured from each record to the next, as a share of the
gap. Statements that need distinct u(0), or a(0) = 0, raise ValueError without it.
"""

import numpy as np
from scipy.integrate import solve_ivp
from scipy.special import expit, softmax

from src.value_softmax import checks
from src.value_softmax.flow import Orbit, reduced_flow
from src.value_softmax.kernels import Model
from src.value_softmax.model import alpha, check_state, is_softmax, loss_gradient
from src.value_softmax.trajectory import Trajectory

# Signs and velocities


def loss_under_sign(u, a, t, sign: int) -> np.ndarray:
    """Logistic losses (R) at times t (R) along du/dt = ±γ s, da/dt = ±γ J u, with ‖β‖ = 1.

    `sign` +1 is gradient flow, which lowers the loss. With -1, as the paper prints (6), (7), (9), (10), (15)
    and (16), it rises.
    """
    u, a, t = checks.array("u", u, ndim=1), checks.array("a", a, ndim=1), checks.increasing("t", t, least=0)
    checks.choice("sign", sign, (1, -1))

    def field(_, y):
        u, a = np.split(y, 2)
        s = softmax(a)
        return sign * expit(-s @ u) * np.concatenate((s, s * (u - s @ u)))

    y = solve_ivp(field, (0, t[-1]), np.concatenate((u, a)), t_eval=t, method="LSODA", rtol=1e-9, atol=1e-9).y
    return np.logaddexp(0, -(softmax(y[len(u) :], axis=0) * y[: len(u)]).sum(0))


def velocities(model: Model, V, a) -> tuple[np.ndarray, np.ndarray]:
    """Lemma D.2 at V (d, n), a (n) under softmax: ds/dt = -J² Vᵀ g and dβ̂/dt = -(‖s‖² I + V J² Vᵀ) g.

    Raises ValueError for another normalisation, a tied model and several rows.
    """
    V, A = check_state(model, V, a)
    if not is_softmax(model) or len(A) > 1:
        raise ValueError("Lemma D.2 is of σ(a): take softmax, not tied, and one row of scores")
    s = alpha("Softmax", A[0])
    g, J = loss_gradient(model, V @ s), np.diag(s) - np.outer(s, s)
    ds = -J @ J @ V.T @ g
    return ds, -(s @ s) * g + V @ ds


# Invariants: the largest departure, so that 0 is exact.


def sum_of_scores_departure(orbit: Orbit) -> float:
    """|Σ a - Σ a(0)|."""
    return float(np.abs((orbit.a - orbit.a[0]).sum(-1)).max())


def sum_of_u_departure(orbit: Orbit) -> float:
    """|Σ u - Σ u(0) - ‖β‖² τ|, τ being counted from the first record."""
    return float(np.abs((orbit.u - orbit.u[0]).sum(-1) - orbit.beta_sq * (orbit.tau - orbit.tau[0])).max())


def orthogonal_departure(trajectory: Trajectory) -> float:
    """The change of (I - ββᵀ) V, entry by entry, for the logistic loss."""
    beta = trajectory.model.target
    moved = trajectory.V - trajectory.V[0]  # (R, d, n)
    return float(np.abs(moved - beta[:, None] * (beta @ moved)[:, None]).max())


# Order and gaps (Theorem 3.2 and its proof)


def u_order_margin(orbit: Orbit) -> float:
    """Theorem 3.2a: the least gap u_i - u_j, over time and over pairs with u_i(0) > u_j(0)."""
    return float(gaps(_ranked(orbit).u).min())


def s_order_margin(orbit: Orbit) -> float:
    """Theorem 3.2a: the least gap a_i - a_j = log s_i/s_j after the start, likewise."""
    return float(gaps(_ranked(orbit, from_zero=True).a)[_after(orbit)].min())


def potential(orbit: Orbit) -> np.ndarray:
    """Φ_ij = -(e^{-a_i} - e^{-a_j})(u_i - u_j) of neighbours (R, n - 1), as the proof of 3.2 has it."""
    ranked = _ranked(orbit, from_zero=True)
    return gaps(-np.exp(-ranked.a)) * gaps(ranked.u)


def u_gap_growth(orbit: Orbit) -> float:
    """Theorem 3.2b: the least growth of u_i - u_j for u_i(0) > u_j(0)."""
    return growth(gaps(_ranked(orbit).u))


def exp_gap_growth(orbit: Orbit) -> float:
    """The same of -(e^{-a_i} - e^{-a_j}), which is what the proof does give."""
    return growth(gaps(-np.exp(-_ranked(orbit, from_zero=True).a)))


def a_gap_growth(orbit: Orbit) -> float:
    """The same of a_i - a_j, claimed in passing. It fails for every n ≥ 3 that is followed far enough."""
    return growth(gaps(_ranked(orbit, from_zero=True).a))


def s_gap_growth(orbit: Orbit) -> float:
    """The same of s_i - s_j, claimed in passing. It fails likewise: losers all go to 0."""
    return growth(gaps(_ranked(orbit, from_zero=True).s))


def winner_a_growth(orbit: Orbit) -> float:
    """Growth of a_m - a_j, the winner m against every other j: u_m ≥ ⟨s, u⟩ makes it hold."""
    a = _ranked(orbit, from_zero=True).a
    return growth(a[:, :1] - a[:, 1:])


def winner_s_growth(orbit: Orbit) -> float:
    """Growth of s_m - s_j. It holds: ds/dτ = s ∘ (w - ⟨s, w⟩) with w = J u, and both factors peak at m."""
    s = _ranked(orbit, from_zero=True).s
    return growth(s[:, :1] - s[:, 1:])


# Polarization (Theorem 3.3, Lemma 3.5)


def loss_decay(orbit: Orbit, log_t) -> np.ndarray:
    """Theorem 3.3a, log(t L) (R) of the logistic loss: L → 0, and as it levels off, like 1/t."""
    margin = (orbit.s * orbit.u).sum(-1)
    log_loss = np.log(np.logaddexp(0, -np.minimum(margin, 30)))  # -⟨s, u⟩ to rounding beyond 30
    return np.asarray(log_t) + np.where(margin > 30, -margin, log_loss)


def ratio_bound(orbit: Orbit) -> tuple[np.ndarray, np.ndarray]:
    """Theorem 3.3b: s_j/s_0 (R, n - 1) and their bound 1/(1 + (δ/n) τ) (R), δ the least gap of u(0).

    The first record stands for the start in u(0).
    """
    ranked = _ranked(orbit, from_zero=True)
    delta = gaps(ranked.u[0]).min()
    return np.exp(ranked.a[:, 1:] - ranked.a[:, :1]), 1 / (1 + delta / ranked.a.shape[1] * orbit.tau)


def ratio_bound_margin(orbit: Orbit) -> float:
    """The least difference of bound and truth in 3.3b, in logarithms, after the start."""
    truth, bound = ratio_bound(orbit)
    return float((np.log(bound)[:, None] - np.log(truth))[_after(orbit)].min())


def clock_ratio(orbit: Orbit, log_t) -> np.ndarray:
    """Theorem 3.3c, τ / log t (R): between two positive constants, and → 1/‖β‖² as t grows."""
    return orbit.tau / np.asarray(log_t)


def tail_ratio(orbit: Orbit) -> np.ndarray:
    """The conjecture s_j ~ 2 / (n ‖β‖² τ²) as s_j over it (R, n - 1), losers in order: → 1."""
    ranked = _ranked(orbit)
    return ranked.s[:, 1:] * ranked.s.shape[1] * orbit.beta_sq * orbit.tau[:, None] ** 2 / 2


def square_limit(u, *, beta_sq: float = 1.0) -> tuple[float, np.ndarray]:
    """Lemma 3.5, the square loss's τ∞ and s∞ (n), from a(0) = 0.

    Polarization stays partial: s∞ has no zero, and τ∞ ≤ n - Σu(0)/‖β‖², u and s being in the same order.
    """
    u = checks.array("u", u, ndim=1)
    end = reduced_flow("square", u, np.zeros_like(u), [20.0], beta_sq=beta_sq)
    return float(end.tau[-1]), end.s[-1]


def sink(s: np.ndarray) -> tuple[int, np.ndarray]:
    """Attention sinks: the column of the largest mean weight in the end and, over time (R), its least weight.

    s (R, T, n) are the rows of attention. Every row goes to one column if that least weight goes to 1.
    """
    column = int(s[-1].mean(0).argmax())
    return column, s[:, :, column].min(1)


def gaps(x: np.ndarray) -> np.ndarray:
    """x_i - x_{i+1} (…, n - 1) of ranked coordinates (…, n)."""
    return -np.diff(x, axis=-1)


def growth(x: np.ndarray) -> float:
    """The least increase from record to record of x (R, …), as a share of the larger of the two."""
    larger = np.maximum(np.abs(x[1:]), np.abs(x[:-1]))
    return float((np.diff(x, axis=0) / np.where(larger > 0, larger, 1)).min())


def _ranked(orbit: Orbit, from_zero: bool = False) -> Orbit:
    """The orbit with its coordinates by falling u(0); ValueError for ties and, `from_zero`, for a(0) ≠ 0."""
    checks.distinct("u(0)", orbit.u[0])
    if from_zero and orbit.tau[0] == 0 and orbit.a[0].any():
        raise ValueError(f"a(0) is {orbit.a[0]}: this statement is for a start at zero scores")
    order = np.argsort(-orbit.u[0])
    return Orbit(orbit.tau, orbit.u[:, order], orbit.a[:, order], orbit.beta_sq)


def _after(orbit: Orbit) -> np.ndarray:
    """The records after the start, where the scores have left their tie."""
    return orbit.tau > 0
