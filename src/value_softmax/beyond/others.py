"""Other maps and other descents: sigmoid, relu_mean, softpick, clipping, gates, ssmax, momentum, weight decay."""

import numpy as np
from scipy.integrate import solve_ivp
from scipy.special import expit, softmax

from src.value_softmax import checks
from src.value_softmax.descent import descend, rule
from src.value_softmax.flow import Orbit, orbit
from src.value_softmax.model import alpha
from src.value_softmax.trajectory import Trajectory


def sigmoid_invariant(orbit: Orbit) -> np.ndarray:
    """u_i²/2 - ‖β‖²(a_i + e^{a_i}) (R, n): constant, each score by itself."""
    return orbit.u**2 / 2 - orbit.beta_sq * (orbit.a + np.exp(orbit.a))


def sigmoid_ratio(orbit: Orbit) -> np.ndarray:
    """1 - s_i over 2/(‖β‖²τ²) (R, n): → 1, so that every weight goes to 1."""
    return expit(-orbit.a) * orbit.beta_sq * orbit.tau[:, None] ** 2 / 2


def relu_mean_flow(u, a, tau, *, beta_sq: float = 1.0) -> np.ndarray:
    """relu_mean's scores (R, n) at τ (R) from u, a > 0 (n), solved: a cosh(‖β‖τ/n) + (u/‖β‖) sinh(‖β‖τ/n), until 0."""
    u, a, norm = np.asarray(u, dtype=float), np.asarray(a, dtype=float), np.sqrt(beta_sq)
    x = norm * np.asarray(tau)[:, None] / u.size
    dies = norm * a + u < 0
    death = np.arctanh(np.where(dies, -norm * a / np.where(u == 0, -1.0, u), 0.0))
    return np.where(dies & (x >= death), 0.0, a * np.cosh(x) + u / norm * np.sinh(x))


def relu_mean_limit(u, a, *, beta_sq: float = 1.0) -> np.ndarray:
    """Where relu_mean's shares s/Σs end (n): (‖β‖a(0) + u(0))₊, normalised. No polarization."""
    kept = np.maximum(np.sqrt(beta_sq) * np.asarray(a) + np.asarray(u), 0)
    return kept / kept.sum()


def died(run: Trajectory) -> bool:
    """Whether all weights are 0 in the end: nothing moves any more."""
    return bool((run.s[-1] == 0).all())


def clipping_keys(gamma: float = -0.03) -> int:
    """The number of keys from which uniform attention under softmax_clipped has no weight and no gradient."""
    checks.within("gamma", gamma, -1, 0)
    n = 1
    while alpha("softmax_clipped", np.zeros(n), gamma)[0] > 0:
        n += 1
    return n


def gated_departure(u, t, *, gate: float = 0.0) -> float:
    """gated_head with a bias gate σ(h), h(0) = `gate`, logistic loss: how far (u, a) leaves softmax's own orbit.

    The clock is τ = ∫γ σ(h) dt; from u (n), a(0) = 0, at times t (R).
    """
    u = checks.array("u", u, ndim=1)
    t, n = checks.increasing("t", t, least=0), u.size

    def field(_, y):
        u, s, g = y[:n], softmax(y[n : 2 * n]), expit(y[-2])
        mean = s @ u
        gamma = expit(-g * mean)
        return gamma * g * np.concatenate((s, s * (u - mean), [(1 - g) * mean, 1]))

    start = np.concatenate((u, np.zeros(n), [gate, 0.0]))
    y = solve_ivp(field, (0, t[-1]), start, t_eval=t, method="LSODA", rtol=1e-11, atol=1e-11).y.T
    own = orbit(u, np.zeros(n), y[:, -1], tol=1e-10)
    return float(max(np.abs(own.u - y[:, :n]).max(), np.abs(own.a - y[:, n : 2 * n]).max()))


def ssmax_invariant(orbit: Orbit) -> np.ndarray:
    """‖a‖² - h² (R), h the scale behind the scores: constant."""
    return (orbit.a[:, :-1] ** 2).sum(-1) - orbit.a[:, -1] ** 2


def ssmax_departure(orbit: Orbit) -> float:
    """Effective scores h log n · a against log n · a √(1/log²n + ‖a‖²), from a(0) = 0 and h(0) = 1/log n."""
    a, log_n = orbit.a[:, :-1], np.log(orbit.u.shape[1])
    law = log_n * a * np.sqrt(1 / log_n**2 + (a**2).sum(-1, keepdims=True))
    return float(np.abs(orbit.a[:, -1:] * log_n * a - law).max())


def momentum_departure(model, V, a, *, lr: float, t: float, momentum: float = 0.9) -> float:
    """|Δs| at time t between descent, k = t/η, and momentum at the same time, k = t (1-μ)/η."""
    checks.within("momentum", momentum, 0, 1, open_above=True)
    plain = descend(model, V, a, steps=round(t / lr), lr=lr, record=[round(t / lr)])
    k = round(t * (1 - momentum) / lr)
    heavy = descend(model, V, a, steps=k, lr=lr, record=[k], optimizer=rule("momentum", momentum=momentum))
    return float(np.abs(plain.s - heavy.s).max())


def critical_decay(n: int, norm: float = 1.0) -> float:
    """λ_c = ‖β‖ σ(-‖β‖)/n: gradient flow with weight decay λ stays at uniform attention iff λ > λ_c.

    Uniform attention has u = γ‖β‖²/(nλ); a small difference of scores grows at the rate γ‖β‖/n - λ.
    """
    return checks.positive("norm", norm) * float(expit(-norm)) / checks.count("n", n)


def decayed(u, decay: float, t, *, norm: float = 1.0) -> Orbit:
    """Gradient flow with weight decay λ, logistic loss: u' = γ‖β‖² s - λu, a' = γ J u - λa; in t, not in τ.

    From u (n), a(0) = 0, at times t (R), which stand in the orbit's τ. Raises ValueError for a decay < 0.
    """
    u, beta_sq = checks.array("u", u, ndim=1), checks.positive("norm", norm) ** 2
    t, n = checks.increasing("t", t, least=0), u.size
    checks.within("decay", decay, 0, np.inf, open_above=True)

    def field(_, y):
        u, s = y[:n], softmax(y[n:])
        return expit(-s @ u) * np.concatenate((beta_sq * s, s * (u - s @ u))) - decay * y

    start = np.concatenate((u, np.zeros(n)))
    y = solve_ivp(field, (0, t[-1]), start, t_eval=t, method="LSODA", rtol=1e-9, atol=1e-12).y.T
    return Orbit(t, y[:, :n], y[:, n:], beta_sq)
