"""The same descent as a plain NumPy loop: what the compiled one is tested against and timed against.

Written from the formulas alone; it shares nothing with `kernels` but the numbers of the names.
"""

import numpy as np

from src.value_softmax.kernels import EPSILON, L1, L2, LOGISTIC, REGRESSION, RELU, SOFTMAX, SQUARE, SUM, Model


def descend(model: Model, V: np.ndarray, a: np.ndarray, steps: int, lr: float) -> tuple[np.ndarray, np.ndarray]:
    """V (d, n) and a (n) after `steps` steps of gradient descent."""
    V, a = V.copy(), a.copy()
    for _ in range(steps):
        dV, da = gradients(model, V, a)
        V -= lr * dV
        a -= lr * da
    return V, a


def gradients(model: Model, V: np.ndarray, a: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """∂L/∂V = g sᵀ, ∂L/∂a = Jᵀ Vᵀ g; tied, g sᵀ + q aᵀ and Uᵀ q with q = Jᵀ Uᵀ g."""
    s, J = alpha(model, V @ a if model.tied else a)
    g = loss_gradient(model, V @ s)
    q = J.T @ (V.T @ g)
    if model.tied:
        return np.outer(g, s) + np.outer(q, a), V.T @ q
    return np.outer(g, s), q


def softmax(z: np.ndarray) -> np.ndarray:
    """exp z / Σ exp z."""
    e = np.exp(z - z.max())
    return e / e.sum()


def alpha(model: Model, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The weights α(z) (n) and their Jacobian (n, n)."""
    kind = model.normalisation
    if kind == SOFTMAX:
        s = softmax(z)
        return s, np.diag(s) - np.outer(s, s)
    if kind == L1:
        f, slope = np.abs(z), np.sign(z)
    elif kind == SUM:
        f, slope = z, np.ones_like(z)
    elif kind == L2:
        f, slope = z**2, 2 * z
    elif kind == RELU:
        f, slope = np.maximum(z, 0), (z > 0).astype(float)
    else:
        s = 1 / (1 + np.exp(-z))
        return s, np.diag(s * (1 - s))
    total = f.sum() + EPSILON
    return f / total, (np.diag(slope) - np.outer(f, slope) / total) / total


def loss_gradient(model: Model, beta_hat: np.ndarray) -> np.ndarray:
    """∂L/∂β̂ (d)."""
    y = model.target
    if model.loss == LOGISTIC:
        return -y / (1 + np.exp(y @ beta_hat))
    if model.loss == SQUARE:
        return beta_hat - y
    if model.loss == REGRESSION:
        return -2 * model.X.T @ (y - model.X @ beta_hat)
    return softmax(beta_hat) - y
