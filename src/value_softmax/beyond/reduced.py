"""The reduced system under any map: what never falls, what is constant, and where it is exact.

du/dτ = ‖β‖² s, da/dτ = Jᵀ u. ū = ⟨s, u⟩ obeys dū/dτ = ‖β‖²‖s‖² + ‖Jᵀu‖², so that it never falls, whatever the map.
"""

import numpy as np
from scipy.interpolate import CubicSpline

from src.value_softmax.flow import Orbit
from src.value_softmax.kernels import NORMALISATIONS, Model
from src.value_softmax.model import alpha, alpha_vjp, gradients, loss_gradient
from src.value_softmax.trajectory import Trajectory


def jacobian(normalisation: str, z, option: float | None = None) -> np.ndarray:
    """J = ∂α/∂z (n, n + p) at z (n + p), a row for each unit vector pulled back."""
    n = alpha(normalisation, z, option).size
    return np.stack([alpha_vjp(normalisation, z, row, option) for row in np.eye(n)])


def asymmetry(normalisation: str, z, option: float | None = None) -> float:
    """The largest |J - Jᵀ| at scores z (n): where it is not 0, da/dτ = J u is wrong. The map must have no parameter."""
    J = jacobian(normalisation, z, option)
    return float(np.abs(J - J.T).max())


def mean_growth(run: Orbit | Trajectory) -> float:
    """The least change of ū = ⟨s, u⟩ from record to record."""
    return float(np.diff((run.s * run.u).sum(-1)).min())


def turning(run: Trajectory) -> float:
    """How far the direction of g = ∂L/∂β̂ turns from the start: the largest 1 - |cos|. 0 where there is one target β."""
    g = np.stack([loss_gradient(run.model, prediction) for prediction in run.beta_hat])
    g /= np.linalg.norm(g, axis=1, keepdims=True)
    return float((1 - np.abs(g @ g[0])).max())


def sum_departure(orbit: Orbit) -> float:
    """|Σu - Σu(0) - ‖β‖² ∫Σs dτ|, relative to the integral's end; the integral is of a spline through the records."""
    integral = CubicSpline(orbit.tau, orbit.s.sum(-1)).antiderivative()(orbit.tau)
    moved = (orbit.u - orbit.u[0]).sum(-1)
    return float(np.abs(moved - orbit.beta_sq * integral).max() / np.abs(integral[-1]))


def score_sum_departure(orbit: Orbit) -> float:
    """|Σa - Σa(0)| over all of a, parameters included: 0 iff J·1 = 0."""
    return float(np.abs((orbit.a - orbit.a[0]).sum(-1)).max())


def score_norm_departure(orbit: Orbit) -> float:
    """|‖a‖² - ‖a(0)‖²|, relative: 0 for a map of degree 0 (L2, Sum; L1 and ReLU on the support)."""
    norm = (orbit.a**2).sum(-1)
    return float(np.abs(norm - norm[0]).max() / norm[0])


def square_extra(model: Model, V, a) -> np.ndarray:
    """-Jᵀ WᵀW s, W = (I - ββᵀ/‖β‖²) V: what the square loss adds to da/dt = γ Jᵀ u, (n). 0 iff W s is."""
    name = NORMALISATIONS[model.normalisation]
    V, beta = np.asarray(V, dtype=float), model.target
    W = V - np.outer(beta, beta @ V) / (beta @ beta)
    return -alpha_vjp(name, a, W.T @ (W @ alpha(name, a)))


def square_departure(model: Model, V, a, extra: bool) -> float:
    """|-∂L/∂a - γ Jᵀ u| of the square loss, `extra` with the term above added to the second."""
    name = NORMALISATIONS[model.normalisation]
    u, beta_sq = model.target @ np.asarray(V, dtype=float), model.target @ model.target
    reduced = (1 - alpha(name, a) @ u / beta_sq) * alpha_vjp(name, a, u)
    return float(np.abs(-gradients(model, V, a)[1] - reduced - extra * square_extra(model, V, a)).max())
