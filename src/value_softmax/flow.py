"""Gradient flow: dV/dt = -∂L/∂V, da/dt = -∂L/∂a for any model, and the reduced system in the clock τ.

For one target β (logistic or linear loss, or square loss with V = β uᵀ/‖β‖²) the scores a and u = Vᵀβ close on
themselves. In the polarization clock τ = ∫γ dt the loss drops out,

    du/dτ = ‖β‖² s,    da/dτ = Jᵀ u, for softmax s ∘ (u - ⟨s, u⟩),

and is left only in how fast the clock runs: dτ/dt = γ, a function of ⟨s, u⟩. Every normalisation in the table has this
system, and its parameters flow as the scores do: they stand behind them in a. The reduced system is solved in log t, so
that t may be far beyond the largest float. The paper prints (6), (7), (9), (10), (15), (16) with -γ; the chain rule,
and its appendix B, give +γ (see `theory.loss_under_sign`).
"""

from dataclasses import dataclass

import numpy as np
from scipy.integrate import solve_ivp

from src.value_softmax import checks, kernels
from src.value_softmax.kernels import NORMALISATIONS, TABLE, Model
from src.value_softmax.model import (
    alphas,
    check_state,
    constant,
    gradients_of_rows,
    is_softmax,
    pull_back,
    solver,
)
from src.value_softmax.trajectory import Trajectory

TOLERANCE = 1e-8
MARGIN = 100  # the solver bounds the error of one step: at tol / MARGIN their sum stays below tol
SETTLED = 1e-12  # the γ below which the square loss's flow is taken to stand still


@dataclass(frozen=True)
class Orbit:
    """R states of the reduced system: τ (R), u = Vᵀβ (R, n), a (R, n + p), ‖β‖², and the map from a to weights."""

    tau: np.ndarray
    u: np.ndarray
    a: np.ndarray
    beta_sq: float = 1.0
    normalisation: str = "Softmax"
    option: float | None = None

    @property
    def s(self) -> np.ndarray:
        """Weights α(a) (R, n)."""
        return alphas(self.normalisation, self.a, self.option)


def flow(model: Model, V, a, t, *, tol: float = TOLERANCE) -> Trajectory:
    """Gradient flow from V (d, n), a (n) or (T, n) at time 0, at increasing times t (R), such as a geomspace.

    The solver (a stiff one, LSODA, where `model.solver` says so) keeps the error below `tol`, relative to 1 or to an
    entry that is larger.
    Raises ValueError for input that does not fit and for L1 and softpick, which have none; ArithmeticError where the
    solver gives up.
    """
    V, A = check_state(model, V, a)
    method = solver(*_map(model))
    t = checks.increasing("t", t, least=0)

    def field(_, state):
        dV, dA = gradients_of_rows(model, state[: V.size].reshape(V.shape), state[V.size :].reshape(A.shape))
        return -np.concatenate((dV.ravel(), dA.ravel()))

    states = _solve(field, np.concatenate((V.ravel(), A.ravel())), t, tol, method)
    V_t = np.ascontiguousarray(states[:, : V.size]).reshape(-1, *V.shape)
    a_t = np.ascontiguousarray(states[:, V.size :]).reshape(-1, *np.shape(a))
    return Trajectory(model, t, V_t, a_t)


def orbit(
    u,
    a,
    tau,
    *,
    beta_sq: float = 1.0,
    normalisation: str = "Softmax",
    option: float | None = None,
    tol: float = TOLERANCE,
) -> Orbit:
    """The orbit that all losses share, from u (n), a (n + p) at τ = 0, at increasing τ (R). Raises as `flow`."""
    u, a, beta_sq = _check_reduced(u, a, beta_sq, normalisation)
    tau = checks.increasing("tau", tau, least=0)
    polarize = _polarization(normalisation, option, u.size, beta_sq)
    method = solver(normalisation, option)
    states = _solve(lambda _, y: polarize(y)[1], np.concatenate((u, a)), tau, tol, method)
    return Orbit(tau, states[:, : u.size], states[:, u.size :], beta_sq, normalisation, option)


def reduced_flow(
    loss: str,
    u,
    a,
    log_t,
    *,
    beta_sq: float = 1.0,
    normalisation: str = "Softmax",
    option: float | None = None,
    tol: float = TOLERANCE,
) -> Orbit:
    """The reduced flow of the "logistic", "square" or "linear" loss from u (n), a (n + p) at t = 0, at log t (R).

    Solved in ℓ = log(1 + t): dτ/dℓ = γ exp ℓ stays of order 1 for the logistic loss however large t is. The
    square loss converges; once |γ| < SETTLED its state is held. Raises as `flow`.
    """
    u, a, beta_sq = _check_reduced(u, a, beta_sq, normalisation)
    speed = SPEEDS[checks.choice("loss", loss, SPEEDS)]
    log_t = checks.increasing("log_t", log_t)
    method, polarize = solver(normalisation, option), _polarization(normalisation, option, u.size, beta_sq)

    def field(ell, y):
        margin, velocity = polarize(y[:-1])
        return speed(margin, beta_sq, ell) * np.append(velocity, 1.0)

    def settled(_, y):
        return side * (1 - polarize(y[:-1])[0] / beta_sq) - SETTLED

    settled.terminal = True
    start = np.concatenate((u, a, [0.0]))
    side = 1 if polarize(start[:-1])[0] < beta_sq else -1  # the sign of γ, which it keeps
    states = _solve(field, start, np.logaddexp(0, log_t), tol, method, settled if loss == "square" else None)
    return Orbit(states[:, -1], states[:, : u.size], states[:, u.size : -1], beta_sq, normalisation, option)


def reduce(trajectory: Trajectory) -> Orbit:
    """A full trajectory's u, a and τ; exact for the logistic loss, for the square loss if V = β uᵀ/‖β‖².

    τ is read off Σu = Σu(0) + ‖β‖² τ, which descent keeps as exactly as the flow does, where weights sum to 1.
    Raises ValueError unless weights are softmax, not tied, from one row of scores, and the target a β ≠ 0.
    """
    if not is_softmax(trajectory.model) or trajectory.a.ndim != 2:
        raise ValueError("the trajectory does not reduce: take softmax, not tied, and one row of scores")
    u, beta_sq = trajectory.u, trajectory.beta_sq
    return Orbit((u - u[0]).sum(-1) / beta_sq, u, trajectory.a, beta_sq)


SPEEDS = {  # dτ/dℓ = γ dt/dℓ from ⟨s, u⟩, ‖β‖² and ℓ = log(1 + t)
    "logistic": lambda margin, beta_sq, ell: np.exp(ell - np.logaddexp(0, margin)),
    "linear": lambda margin, beta_sq, ell: np.exp(ell),
    "square": lambda margin, beta_sq, ell: np.exp(ell) * _unsettled(1 - margin / beta_sq),
}


def _unsettled(gamma):
    """γ, and 0 for what is left of it at rest."""
    return gamma if abs(gamma) > SETTLED else 0.0


def _polarization(normalisation, option, n, beta_sq):
    """The function from y = (u (n), a (n + p)) to ⟨s, u⟩ and (du/dτ, da/dτ), joined."""
    kind, option = NORMALISATIONS.index(normalisation), constant(normalisation, option)
    s, slope = np.empty(n), np.empty(n + 1)

    def polarize(y):
        u, a = y[:n], y[n:]
        kernels.normalise(kind, option, a, s, slope)
        return s @ u, np.concatenate((beta_sq * s, pull_back(kind, option, a, s, slope, u)))

    return polarize


def _solve(field, start, times, tol, method, event=None) -> np.ndarray:
    """States (R, variables) at `times`; after a terminal `event`, the state at the event."""
    step_tol = checks.positive("tol", tol) / MARGIN
    if times[-1] == 0:  # an interval without length is nothing to a solver
        return np.repeat(start[None], len(times), axis=0)
    solution = solve_ivp(
        field, (0, times[-1]), start, method=method, t_eval=times, rtol=step_tol, atol=step_tol, events=event
    )
    if solution.status < 0:
        raise ArithmeticError(f"the flow could not be solved to tolerance {tol}: {solution.message}")
    states = np.reshape(solution.y, (start.size, -1)).T  # SciPy gives [] for no states
    if solution.status == 1:
        held = np.repeat(solution.y_events[0], len(times) - len(states), axis=0)
        states = np.concatenate((states, held))
    return states


def _map(model):
    """The model's normalisation by name, and its constant if it has one."""
    name = NORMALISATIONS[model.normalisation]
    return name, model.option if TABLE[name].allowed != (0.0, 0.0) else None


def _check_reduced(u, a, beta_sq, normalisation):
    u, a = checks.array("u", u, ndim=1), checks.array("a", a, ndim=1)
    p = TABLE[checks.choice("normalisation", normalisation, NORMALISATIONS)].parameters
    checks.shape("a", a, (u.size + p,), "that of u" + (f" and {p} parameter of {normalisation}" if p else ""))
    return u, a, checks.positive("beta_sq", beta_sq)
