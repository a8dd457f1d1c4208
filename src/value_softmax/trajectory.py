"""A run's recorded states, and what follows from them: weights, predictions, losses, u, γ."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.special import entr, expit

from src.value_softmax import checks, kernels
from src.value_softmax.kernels import LINEAR, LOGISTIC, LOSSES, Model
from src.value_softmax.model import parameters


def entropy(s: np.ndarray) -> np.ndarray:
    """-Σ s log s over the last axis, in nats, of weights s (…, n) that are not negative."""
    return entr(s).sum(-1)


@dataclass(frozen=True)
class Trajectory:
    """R recorded states of one run of descent or flow.

    t (R): time, for descent the step times the learning rate. V (R, d, n): values. a (R, n), or (R, T, n) for
    T rows of scores; a normalisation's p parameters stand behind them (n + p). steps (R): the number of steps made,
    of descent only.
    """

    model: Model
    t: np.ndarray
    V: np.ndarray
    a: np.ndarray
    steps: np.ndarray | None = None

    @property
    def s(self) -> np.ndarray:
        """Weights α(a) (α(U a) if tied), in the shape of a without parameters."""
        return self._evaluated[0]

    @property
    def beta_hat(self) -> np.ndarray:
        """Predictions V s: (R, d), or (R, T, d)."""
        return self._evaluated[1]

    @property
    def loss(self) -> np.ndarray:
        """Losses (R), means over the rows of scores."""
        return self._evaluated[2]

    @cached_property
    def _evaluated(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        (R, d, n), rows = self.V.shape, self.a.shape[1:-1]
        T = rows[0] if rows else 1
        S, B, losses = np.empty((R, T, n)), np.empty((R, T, d)), np.empty(R)
        p = parameters(self.model)
        work = kernels.workspace(d, n, 1, p)
        kernels.evaluate(self.model, self.V, self.a.reshape(R, T, n + p), work, S, B, losses)
        return S.reshape(R, *rows, n), B.reshape(R, *rows, d), losses

    @property
    def u(self) -> np.ndarray:
        """u = Vᵀβ (R, n), for a loss whose target is a β. Raises ValueError for another loss."""
        if LOSSES[self.model.loss] not in ("logistic", "square", "linear"):
            raise ValueError(f"the {LOSSES[self.model.loss]} loss has no β: u = Vᵀβ is for logistic, square and linear")
        return self.model.target @ self.V

    @property
    def gamma(self) -> np.ndarray:
        """γ with -g along β: sigmoid(-⟨β, β̂⟩), square 1 - ⟨β, β̂⟩/‖β‖², linear 1; (R), or (R, T). Raises like `u`."""
        margin = (self.s * (self.u if self.s.ndim == 2 else self.u[:, None])).sum(-1)  # ⟨s, u⟩ = ⟨β, β̂⟩
        if self.model.loss == LINEAR:
            return np.ones_like(margin)
        return expit(-margin) if self.model.loss == LOGISTIC else 1 - margin / self.beta_sq

    @property
    def beta_sq(self) -> float:
        """‖β‖². Raises ValueError for β = 0, to which nothing is relative."""
        return checks.positive("‖β‖² of the target", float(self.model.target @ self.model.target))
