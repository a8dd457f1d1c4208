"""α-entmax under the flow: how fast losers fall, when they leave, and sparsemax solved.

From a(0) = 0 the losers' weights fall like a power of τ for α < 3/2, like exp(-Δ²/‖β‖²) at α = 3/2, Δ the gap of
u between winner and loser, and are exactly 0 from a finite τ on for α > 3/2. Nothing here is in the paper.

The solver integrates w_j = s_j^{α-1} of the losers, where the threshold needs no search:

    dw_j/dτ = (α-1) (g_j c_j - Σ g² c / Σ g),  g = s^{2-α},  c_j = u_j - Σ g u / Σ g,

a loser that reaches w = 0 staying there. Once one loser (or a group of equals) is left, ln w, or s^{2α-3} for α > 3/2,
moves at a speed that is smooth to the end.
"""

from dataclasses import dataclass

import numpy as np
from scipy.integrate import quad, solve_ivp

from src.value_softmax import checks
from src.value_softmax.flow import Orbit
from src.value_softmax.model import alphas

TIGHT = {"method": "DOP853", "rtol": 1e-11, "atol": 1e-13}
CRITICAL = 1.5  # the α at which the power law ends
NEVER = 1e9  # the τ by which whatever leaves has left


def tail_exponent(alpha: float) -> float:
    """-d ln s_j / d ln Δ_j → 2/(3-2α), for α in [1, 3/2); any n."""
    return 2 / (3 - 2 * checks.within("alpha", alpha, 1, CRITICAL, open_above=True))


def spread_exponent(alpha: float, n_eff: int) -> float:
    """κ: relative differences of n_eff - 1 nearly tied losers go like τ^κ, α in [1, 3/2).

    Negative, so that the losers stay together, iff α < 1 + 1/(n_eff + 1).
    """
    return tail_exponent(alpha) * ((n_eff + 1) * (alpha - 1) - 1) / n_eff


@dataclass(frozen=True)
class Losers:
    """τ (R), u and s (R, n), and the τ at which each weight becomes 0 for good (n): inf where it never does."""

    tau: np.ndarray
    u: np.ndarray
    s: np.ndarray
    exits: np.ndarray
    beta_sq: float = 1.0


def losers(u, alpha: float, tau=(), *, beta_sq: float = 1.0) -> Losers:
    """The flow of α-entmax, α in (1, 2], from u (n) and a(0) = 0, at increasing τ (R); without τ, only its exits.

    Weights keep their relative accuracy as they vanish, and exits are within 1e-8. Equal entries of u stay equal.
    Raises ValueError for an α outside, and where the largest entry of u is not alone.
    """
    u, beta_sq = checks.array("u", u, ndim=1), checks.positive("beta_sq", beta_sq)
    if checks.within("alpha", alpha, 1, 2) == 1:
        raise ValueError("alpha is 1: that is softmax, whose losers never leave; use flow.orbit")
    tau = checks.increasing("tau", tau, least=0) if len(tau) else np.empty(0)
    values, group, size = np.unique(-u, return_inverse=True, return_counts=True)
    if size[0] > 1:
        raise ValueError(
            f"u holds its largest entry {u.max()} {size[0]} times: one winner is needed, raise one of them"
        )
    end = tau[-1] if tau.size else NEVER
    U, S, exits = _phases(-values, size, alpha, beta_sq, tau, end)
    return Losers(tau, U[:, group], S[:, group], exits[group], beta_sq)


def _phases(u, size, alpha, beta_sq, tau, end):
    """u and s (R, groups) and exits (groups): a phase ends when a group of losers leaves."""
    r, now, alive = alpha - 1, 0.0, u.size - 1
    w = np.full(u.size - 1, size.sum() ** -r)  # of the losers, by falling u
    U, S, exits = np.empty((tau.size, u.size)), np.zeros((tau.size, u.size)), np.full(u.size, np.inf)
    while now < end:
        last = alive == 1
        to, back = _chart(alpha) if last else (lambda w: w, lambda x: x)
        start = np.concatenate((u, to(w[:alive])))
        field = _field(size, alpha, beta_sq, alive, last, back)
        gone = [_vanishes(u.size + j) for j in range(alive) if not last or alpha > CRITICAL]
        inside = np.flatnonzero((tau >= now) & (tau <= end))
        solution = solve_ivp(field, (now, end), start, events=gone, dense_output=inside.size > 0, **TIGHT)
        reached = inside[tau[inside] <= solution.t[-1]]
        if reached.size:
            states = solution.sol(tau[reached]).T
            U[reached] = states[:, : u.size]
            w_t = back(np.maximum(states[:, u.size :], 0) if not last or alpha > CRITICAL else states[:, u.size :])
            S[reached, 1 : 1 + alive] = w_t ** (1 / r)
        u, now = solution.y[: u.size, -1], solution.t[-1]
        w = back(np.maximum(solution.y[u.size :, -1], 0) if solution.status == 1 else solution.y[u.size :, -1])
        if solution.status == 1:
            exits[alive] = now  # order is kept: the last one leaves
            alive -= 1
        if alive == 0:
            U[tau > now] = u + np.eye(u.size)[0] * beta_sq * (tau[tau > now, None] - now)
            break
    S[:, 0] = 1 - S[:, 1:] @ size[1:]
    return U, S, exits


def _field(size, alpha, beta_sq, alive, last, back):
    """The right-hand side for u (groups) and the alive losers' w, in the last phase in its chart."""
    r, k = alpha - 1, len(size)
    m = size[: alive + 1]

    def field(_, y):
        u = y[: alive + 1]
        w = back(y[k:]) if last else np.maximum(y[k:], 0)
        s = np.concatenate(([0.0], w ** (1 / r)))
        s[0] = 1 - m @ s
        g = np.concatenate(([s[0] ** (2 - alpha)], w ** ((2 - alpha) / r)))
        total = m @ g
        du = np.zeros(k)
        du[: alive + 1] = beta_sq * s
        if last:  # w' = -r (m + 1) g₀² g Δ / (Σg)², and the chart's derivative has taken g and w out of it
            common = -(m[1] + 1) * g[0] ** 2 * (u[0] - u[1]) / total**2
            scale = 2 * alpha - 3 if alpha > CRITICAL else r * w[0] ** ((3 - 2 * alpha) / r)
            return np.append(du, common * scale)
        c = (u[:, None] - u) @ (m * g) / total
        return np.concatenate((du, r * (g * c - (m * g * g) @ c / total)[1:]))

    return field


def _chart(alpha):
    """Coordinates of the last loser's w, there and back: s^{2α-3} for α > 3/2, else ln w."""
    if alpha <= CRITICAL:
        return np.log, np.exp
    power = (2 * alpha - 3) / (alpha - 1)
    return lambda w: w**power, lambda x: np.maximum(x, 0) ** (1 / power)


def _vanishes(index):
    def event(_, y):
        return y[index]

    event.terminal, event.direction = True, -1
    return event


def one_hot(u, alpha: float, *, beta_sq: float = 1.0) -> float:
    """The τ from which the weights are one-hot, from u (n), a(0) = 0, to 1e-8; inf for α ≤ 3/2. Raises as `losers`."""
    if checks.within("alpha", alpha, 1, 2) <= CRITICAL:
        return float("inf")
    exits = losers(u, alpha, beta_sq=beta_sq).exits
    return float(exits[np.isfinite(exits)].max(initial=0))


def sparsemax_flow(u, tau, *, beta_sq: float = 1.0) -> np.ndarray:
    """α = 2, a(0) = 0, solved: the weights (R, n) at τ (R) are sparsemax(u(0) sinh(‖β‖τ)/‖β‖).

    On the support s_i - s_j obeys x'' = ‖β‖² x from 0 with speed u_i(0) - u_j(0), whoever else has left.
    """
    u, tau = checks.array("u", u, ndim=1), checks.increasing("tau", tau, least=0)
    norm = np.sqrt(checks.positive("beta_sq", beta_sq))
    return alphas("entmax", u * np.sinh(norm * tau[:, None]) / norm, 2.0)


def sparsemax_one_hot(u, *, beta_sq: float = 1.0) -> float:
    """The τ from which that is one-hot: asinh(‖β‖/δ)/‖β‖, δ the gap of the two largest u(0)."""
    u, norm = checks.array("u", u, ndim=1), np.sqrt(checks.positive("beta_sq", beta_sq))
    checks.distinct("u", u)
    return float(np.arcsinh(norm / -np.diff(np.sort(u)[::-1])[0]) / norm)


# Statements: a margin is positive where they hold, a departure is 0.


def two_score_law(y: float, alpha: float) -> float:
    """n = 2: (Δ² - Δ(0)²)/‖β‖² at the loser's weight y, ∫_y^{1/2} (1-2x)/k(x)² dx, 1/k = x^{α-2} + (1-x)^{α-2}."""
    checks.within("y", y, 0, 0.5)

    def integrand(x):  # in ln x, where the power at 0 is an exponential
        x = np.exp(x)
        return x * (1 - 2 * x) * (x ** (alpha - 2) + (1 - x) ** (alpha - 2)) ** 2

    lower = np.log(y) if y > 0 else -700 / max(2 * alpha - 3, 1e-9)
    cuts = np.linspace(max(lower, -700), np.log(0.5), 41)
    pieces = (quad(integrand, *ends, epsabs=0, epsrel=1e-12)[0] for ends in zip(cuts[:-1], cuts[1:], strict=True))
    return float(sum(pieces))


def two_score_departure(run: Losers | Orbit, alpha: float) -> float:
    """The largest relative difference of Δ² - Δ(0)² (the first record being at τ = 0) from that law, n = 2."""
    gap = np.abs(np.diff(run.u, axis=1)[:, 0])
    moved = (gap**2 - gap[0] ** 2)[1:] / run.beta_sq
    law = np.array([two_score_law(min(y, 0.5), alpha) for y in run.s.min(1)[1:]])
    return float(np.abs(moved / law - 1).max())


def fitted_exponent(run: Losers, least: float = 1e-11, most: float = 1e-6) -> float:
    """-d ln y / d ln Δ of the runner-up's weight y while it is in [least, most]."""
    ln_y, gap = _runner_up(run, least, most)
    return float(-np.polyfit(np.log(gap), ln_y, 1)[0])


def critical_slope(run: Losers, least: float = 1e-11, most: float = 1e-5) -> float:
    """-d ln y / d (Δ²/‖β‖²) of the runner-up's weight while it is in [least, most]: 1 at α = 3/2."""
    ln_y, gap = _runner_up(run, least, most)
    return float(-np.polyfit(gap**2 / run.beta_sq, ln_y, 1)[0])


def _runner_up(run, least, most):
    order = np.argsort(-run.u[0])
    y = run.s[:, order[1]]
    inside = (y >= least) & (y <= most)
    if inside.sum() < 3:
        raise ValueError(f"{inside.sum()} records have the runner-up's weight in [{least:g}, {most:g}]: record 3 there")
    return np.log(y[inside]), (run.u[:, order[0]] - run.u[:, order[1]])[inside]


def order_margin(run: Losers | Orbit) -> float:
    """Weights are ordered as u(0): the least s_i - s_j over time and over neighbours with u_i(0) > u_j(0)."""
    return float(-np.diff(run.s[:, np.argsort(-run.u[0])], axis=1).max())


def gap_margin(run: Losers | Orbit) -> float:
    """Gaps of u never shrink: the least change of u_i - u_j between records, neighbours likewise."""
    return float(np.diff(-np.diff(run.u[:, np.argsort(-run.u[0])], axis=1), axis=0).min())
