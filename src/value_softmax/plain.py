"""The same descent as a plain NumPy loop: what the compiled one is tested against and timed against.

Written from the formulas alone; it shares nothing with `kernels` but the names and the constants.
"""

import numpy as np
from scipy.optimize import brentq

from src.value_softmax.kernels import (
    EPSILON,
    LINEAR,
    LOGISTIC,
    NORMALISATIONS,
    REGRESSION,
    SOFTPICK_EPSILON,
    SQUARE,
    Model,
)


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
    n = V.shape[1]
    z = np.append(V @ a[:n], a[n:]) if model.tied else a
    s, J = alpha(NORMALISATIONS[model.normalisation], z, model.option)
    g = loss_gradient(model, V @ s)
    q = J.T @ (V.T @ g)
    if model.tied:
        return np.outer(g, s) + np.outer(q[:n], a[:n]), np.append(V.T @ q[:n], q[n:])
    return np.outer(g, s), q


def softmax(z: np.ndarray) -> np.ndarray:
    """exp z / Σ exp z."""
    e = np.exp(z - z.max())
    return e / e.sum()


def alpha(name: str, z: np.ndarray, option: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """The weights α(z) (n) and their Jacobian (n, n + p)."""
    if name in QUOTIENTS:
        return quotient(*QUOTIENTS[name](z), EPSILON)
    return MAPS[name](z, option)


def quotient(f, slope, epsilon, size=None) -> tuple[np.ndarray, np.ndarray]:
    """f / (Σ size + ε), sizes being f where none are given, and its Jacobian; pairs are of values and derivatives."""
    size, size_slope = (f, slope) if size is None else size
    total = size.sum() + epsilon
    return f / total, (np.diag(slope) - np.outer(f, size_slope) / total) / total


def softmax_map(z, _):
    """Softmax and its Jacobian."""
    s = softmax(z)
    return s, np.diag(s) - np.outer(s, s)


def with_outlet(z, b):
    """Softmax over the scores z and one more, b; without the row of b."""
    s, J = softmax_map(np.append(z, b), None)
    return s[:-1], J[:-1]


def entmax(z, alpha):
    """α-entmax by a bracketed search of its threshold."""
    if alpha == 1:
        return softmax_map(z, None)
    x = (alpha - 1) * (z - z.max())

    def powers(threshold, exponent):
        above = x > threshold
        return np.where(above, np.where(above, x - threshold, 1.0) ** exponent, 0.0)

    threshold = brentq(lambda c: powers(c, 1 / (alpha - 1)).sum() - 1, -1, 0, xtol=1e-15)
    g = powers(threshold, (2 - alpha) / (alpha - 1))
    return powers(threshold, 1 / (alpha - 1)), np.diag(g) - np.outer(g, g) / g.sum()


def softpick(z, _):
    """Softpick, of scores that are not huge."""
    e, up = np.exp(z), z > 0
    return quotient(np.maximum(e - 1, 0), up * e, SOFTPICK_EPSILON, (np.abs(e - 1), np.sign(z) * e))


def clipped(z, gamma):
    """Softmax stretched and clipped."""
    s, J = softmax_map(z, None)
    stretched = (1 - gamma) * s + gamma
    return np.clip(stretched, 0, 1), (1 - gamma) * (stretched > 0)[:, None] * J


def ssmax(z, _):
    """Softmax of h log n times the scores, h being last in z."""
    scores, h = z[:-1], z[-1] * np.log(z.size - 1)
    s, J = softmax_map(h * scores, None)
    return s, np.column_stack((h * J, np.log(z.size - 1) * J @ scores))


def separate(f, slope):
    """A map of each score by itself."""
    return f, np.diag(slope)


QUOTIENTS = {
    "L1": lambda z: (np.abs(z), np.sign(z)),
    "Sum": lambda z: (z, np.ones_like(z)),
    "L2": lambda z: (z**2, 2 * z),
    "ReLU": lambda z: (np.maximum(z, 0), (z > 0).astype(float)),
}
MAPS = {
    "Softmax": softmax_map,
    "Sigmoid": lambda z, _: separate(1 / (1 + np.exp(-z)), 1 / (1 + np.exp(-z)) / (1 + np.exp(z))),
    "softmax1": lambda z, _: (lambda s, J: (s, J[:, :-1]))(*with_outlet(z, 0.0)),
    "softmax_sink": lambda z, _: with_outlet(z[:-1], z[-1]),
    "entmax": entmax,
    "softpick": softpick,
    "relu_mean": lambda z, _: separate(np.maximum(z, 0) / z.size, (z > 0) / z.size),
    "softmax_clipped": clipped,
    "ssmax": ssmax,
}


def loss_gradient(model: Model, beta_hat: np.ndarray) -> np.ndarray:
    """∂L/∂β̂ (d)."""
    y = model.target
    if model.loss == LOGISTIC:
        return -y / (1 + np.exp(y @ beta_hat))
    if model.loss == SQUARE:
        return beta_hat - y
    if model.loss == REGRESSION:
        return -2 * model.X.T @ (y - model.X @ beta_hat)
    if model.loss == LINEAR:
        return -y
    return softmax(beta_hat) - y
