"""The paper's runs of the value-softmax model, by name: starts, seeds, order of draws, steps, learning rates.

Each start comes from NumPy's legacy generator, drawn in the order written, so that it is the paper's.
`run("kl")` makes a run; SETUPS["kl"]() says what it will be.
"""

from dataclasses import dataclass

import numpy as np

from src.value_softmax import checks
from src.value_softmax.descent import descend, log_spaced
from src.value_softmax.flow import flow
from src.value_softmax.kernels import PAPERS_NORMALISATIONS, Model
from src.value_softmax.model import value_softmax
from src.value_softmax.trajectory import Trajectory


@dataclass(frozen=True)
class Setup:
    """One descent: `descend(model, V, a, steps=steps, lr=lr, record=record)`."""

    model: Model
    V: np.ndarray
    a: np.ndarray
    steps: int
    lr: float
    record: np.ndarray


def run(name: str) -> dict:
    """The trajectories of a run in SETUPS, by what varies in it: normalisation, dimension or κ.

    Raises ValueError for another name.
    """
    return {label: _descend(setup) for label, setup in SETUPS[checks.choice("name", name, SETUPS)]().items()}


def logistic() -> dict[str, Setup]:
    """Logistic loss, d = n = 8: `softmax_and_u_evolution_icml_2col`."""
    draw = np.random.RandomState(123).randn
    V, a, beta = 0.1 * draw(8, 8), 0 * draw(8), draw(8)
    steps = 1_000_000
    model = value_softmax("logistic", _unit(beta))
    return {"Softmax": Setup(model, V, a, steps, 0.1, log_spaced(steps, 2000))}


def square_comparison() -> dict[str, Setup]:
    """Square loss, d = n = 10, the six normalisations: `square_loss_comparison`."""
    return {name: _comparison("square", name, 5_000, 0.1) for name in PAPERS_NORMALISATIONS}


def logistic_comparison() -> dict[str, Setup]:
    """Logistic loss, otherwise as `square_comparison`: `log_loss_comparison` (half a gigabyte)."""
    return {name: _comparison("logistic", name, 100_000, 0.5) for name in PAPERS_NORMALISATIONS}


def tied() -> dict[int, Setup]:
    """One matrix for keys and values, logistic loss, in four dimensions: `massive_activations_2`."""
    return {D: _tied(D) for D in (10, 20, 50, 100)}


def condition_numbers() -> dict[int, Setup]:
    """Regression at condition numbers κ = 1 … 5: `condition_numbers`, `condition_numbers_small`."""
    return {kappa: _regression(kappa) for kappa in range(1, 6)}


def kl() -> dict[str, Setup]:
    """Cross-entropy to a distribution over 10 classes: `kl`."""
    generator = np.random.RandomState(123)
    V = 0.1 * generator.randn(10, 10).T  # drawn as scores × classes
    a = 0 * generator.randn(10)
    exponentials = np.exp(10 * generator.rand(10))
    steps = 10_000_000
    model = value_softmax("cross-entropy", exponentials / exponentials.sum())
    return {"Softmax": Setup(model, V, a, steps, 0.1, log_spaced(steps, 1000))}


def attention_sink(scale: float, t) -> Trajectory:
    """16 queries over 16 values, d = 8, logistic loss: flow at times t (R) from scores of size `scale`.

    The paper extends Theorem 3.3 to this without a run; the start is ours, drawn like the others.
    """
    draw = np.random.RandomState(123).randn
    V, A, beta = 0.1 * draw(8, 16), scale * draw(16, 16), draw(8)
    return flow(value_softmax("logistic", _unit(beta)), V, A, t)


SETUPS = {
    setup.__name__: setup for setup in (logistic, square_comparison, logistic_comparison, tied, condition_numbers, kl)
}


def _comparison(loss: str, normalisation: str, steps: int, lr: float) -> Setup:
    beta = _unit(np.random.RandomState(42).randn(10))
    draw = np.random.RandomState(42).randn
    V, a = 0.1 * draw(10, 10), 1 + 0.1 * draw(10)
    return Setup(value_softmax(loss, beta, normalisation), V, a, steps, lr, np.arange(steps + 1))


def _tied(D: int) -> Setup:
    beta = _unit(np.random.RandomState(42).randn(D))
    draw = np.random.RandomState(42).randn
    draw(D, D)  # unused: U starts as the identity
    a = 1 + 0.1 * draw(D)
    return Setup(value_softmax("logistic", beta, tied=True), np.eye(D), a, 10_000, 0.05, log_spaced(10_000, 300))


def _regression(kappa: float) -> Setup:
    draw = np.random.RandomState(123).randn
    V, a, X = 1e-5 * draw(20, 20), 1e-3 * draw(20), draw(20, 20)
    left, _, right = np.linalg.svd(X)
    X = (left * np.linspace(1, 1 / kappa, 20)) @ right
    steps = 300_000
    return Setup(value_softmax("regression", draw(20), X=X), V, a, steps, 0.001, log_spaced(steps, 3000))


def _unit(beta: np.ndarray) -> np.ndarray:
    return beta / np.linalg.norm(beta)


def _descend(setup: Setup) -> Trajectory:
    return descend(setup.model, setup.V, setup.a, steps=setup.steps, lr=setup.lr, record=setup.record)
