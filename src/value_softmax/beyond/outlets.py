"""Outlets under the flow: softmax1 and softmax_sink, whose weights leave a share s₀ for nothing.

softmax1 is softmax with one more key of score 0 and value 0; softmax_sink has that key's score b trained, behind the
scores in a. From ū(0) ≥ 0 the outlet closes by itself, like 1/τ². From ū(0) < 0 attention flees into it first, and
comes back after a time that is exponential in u².
"""

import numpy as np
from scipy.special import logsumexp, wrightomega

from src.value_softmax import checks
from src.value_softmax.flow import Orbit

OUTLETS = ("softmax1", "softmax_sink")


def log_shares(orbit: Orbit) -> tuple[np.ndarray, np.ndarray]:
    """ln s₀ (R), the outlet's share, and ln s (R, n): exact however small. Raises ValueError for another map."""
    checks.choice("normalisation", orbit.normalisation, OUTLETS)
    n = orbit.u.shape[1]
    a = orbit.a[:, :n]
    b = orbit.a[:, n] if orbit.normalisation == "softmax_sink" else np.zeros(len(a))
    total = np.logaddexp(b, logsumexp(a, axis=1))
    return b - total, a - total[:, None]


def closing_ratio(orbit: Orbit) -> np.ndarray:
    """s₀ over its law (R), → 1: 2/(‖β‖²τ²) for softmax1, 2/((n+1)‖β‖²τ²) for softmax_sink. τ > 0 at every record."""
    log_share = log_shares(orbit)[0]
    keys = orbit.u.shape[1] + 1 if orbit.normalisation == "softmax_sink" else 1
    return np.exp(log_share - np.log(2 / (keys * orbit.beta_sq)) + 2 * np.log(orbit.tau))


def loser_ratio(orbit: Orbit) -> np.ndarray:
    """The largest loser's s_j over s₀ (R): → 1 for softmax_sink, → 0 like 1/ln(‖β‖²τ²/2) for softmax1."""
    outlet, keys = log_shares(orbit)
    return np.exp(np.sort(keys, axis=1)[:, -2] - outlet)


def closing_margin(orbit: Orbit) -> float:
    """The least fall of ln s₀ from record to record: not negative where ū(0) ≥ 0 and a(0) = 0."""
    return float(-np.diff(log_shares(orbit)[0]).max())


def tied_invariant(orbit: Orbit) -> np.ndarray:
    """Equal scores and values: u²/2 - ‖β‖²(a + n e^a) or, with b, (n+1)u²/2 - ‖β‖²(A + e^A), A = a - b + ln n (R)."""
    n, u, a = orbit.u.shape[1], orbit.u[:, 0], orbit.a[:, 0]
    if orbit.normalisation == "softmax1":
        return u**2 / 2 - orbit.beta_sq * (a + n * np.exp(a))
    A = a - orbit.a[:, n] + np.log(n)
    return (n + 1) * u**2 / 2 - orbit.beta_sq * (A + np.exp(A))


def lowest_score(v: float, n: int, normalisation: str, *, beta_sq: float = 1.0) -> float:
    """From u_i = -v < 0, a = b = 0: the least a - b, which solves x + n e^x = n - (v²/2B, or with b (n+1)v²/2B).

    The keys' shares are then e^x/(1 + n e^x), and attention is away for τ of about e^{-x}.
    """
    checks.choice("normalisation", normalisation, OUTLETS)
    depth = (n + 1 if normalisation == "softmax_sink" else 1) * checks.positive("v", v) ** 2 / (2 * beta_sq)
    return float(n - depth - wrightomega(n - depth + np.log(n)).real)


def lifetime(orbit: Orbit) -> float:
    """The τ at which ū passes from below 0 to above, between records in ln τ; inf if it does not."""
    mean = (orbit.s * orbit.u).sum(-1)
    back = np.flatnonzero(mean > 0)
    return float(orbit.tau[back[0]]) if back.size and mean[0] < 0 else float("inf")
