"""The value-softmax model L(V σ(a)): losses, normalisations and gradients as pure functions of arrays.

Section 3 of the paper. A value matrix V (d, n) and scores a (n) give weights s = α(a) and the prediction
β̂ = V s. Scores (T, n) are one row for each of T queries, which share V; the loss is the mean over rows
(Section 4.1, attention sinks). Tied, one square matrix V = U holds keys and values, and s = α(U a).

The formulas are in `kernels`; here they have names and checked input.
"""

import numpy as np

from src.value_softmax import checks, kernels
from src.value_softmax.kernels import LOSSES, NORMALISATIONS, SOFTMAX, Model

UNIT = 1e-9  # how far a norm, or the sum of a distribution, may be from 1


def value_softmax(loss: str, target, normalisation: str = "Softmax", *, X=None, tied: bool = False) -> Model:
    """The model with that loss and normalisation, by their names in LOSSES and NORMALISATIONS.

    loss             L(β̂)                          target
    "logistic"       log(1 + exp(-⟨β, β̂⟩))         β (d), ‖β‖ = 1
    "square"         ½ ‖β̂ - β‖²                     β (d)
    "regression"     ‖y - X β̂‖²                     y (samples), with X (samples, d)
    "cross-entropy"  -Σ p*ᵢ log softmax(β̂)ᵢ         p* (d), a distribution

    Raises ValueError for an unknown name and for a target or X that does not fit the loss.
    """
    checks.choice("loss", loss, LOSSES)
    checks.choice("normalisation", normalisation, NORMALISATIONS)
    target = checks.array("target", target, ndim=1)
    if loss == "regression":
        if X is None:
            raise ValueError("X is None: regression needs one of shape (samples, d)")
        X = checks.array("X", X, ndim=2)
        checks.shape("target", target, X.shape[:1], "one entry for each row of X")
    elif X is not None:
        raise ValueError(f"X is given: the {loss} loss has none, leave it out")
    else:
        X = np.empty((0, target.size))
    norm = np.linalg.norm(target)
    if loss == "logistic" and abs(norm - 1) > UNIT:
        raise ValueError(
            f"target has norm {norm:.9g}: the logistic loss needs ‖β‖ = 1, divide a non-zero β by its norm"
        )
    if loss == "cross-entropy" and (target.min() < 0 or abs(target.sum() - 1) > UNIT):
        raise ValueError(
            f"target sums to {target.sum():.9g} with least entry {target.min():.3g}: "
            "cross-entropy needs a distribution, clip it at 0 and divide by its sum"
        )
    return Model(LOSSES.index(loss), target, X, NORMALISATIONS.index(normalisation), bool(tied))


def check_state(model: Model, V, a) -> tuple[np.ndarray, np.ndarray]:
    """Copies of the values V (d, n) and of the scores as rows A (T, n), where a is (n) or (T, n).

    Raises ValueError for shapes that do not fit each other or the model, and for non-finite entries.
    """
    V, a = checks.array("V", V, ndim=2), checks.array("a", a, ndim=(1, 2))
    d = model.X.shape[1]
    checks.shape("V", V, (d, a.shape[-1]), f"d = {d} from the target and n = {a.shape[-1]} from a")
    if model.tied and V.shape[0] != V.shape[1]:
        raise ValueError(f"V has shape {V.shape}: the tied model needs it square, with as many scores as entries in β")
    return V, np.atleast_2d(a)


def alpha(normalisation: str, z) -> np.ndarray:
    """The weights α(z) (n) of scores z (n)."""
    return _normalise(normalisation, z)[0]


def alpha_vjp(normalisation: str, z, w) -> np.ndarray:
    """Jᵀ w (n), with J = ∂α/∂z at scores z (n), for w (n)."""
    s, slope = _normalise(normalisation, z)
    w = checks.array("w", w, ndim=1)
    checks.shape("w", w, s.shape, "that of z")
    q = np.empty_like(s)
    kernels.pull_back(NORMALISATIONS.index(normalisation), s, slope, w, q)
    return q


def loss(model: Model, beta_hat) -> float:
    """L(β̂) of one prediction (d)."""
    return kernels.loss_value(model, _prediction(model, beta_hat))


def loss_gradient(model: Model, beta_hat) -> np.ndarray:
    """g = ∂L/∂β̂ (d) at one prediction (d)."""
    g = np.empty(model.X.shape[1])
    kernels.loss_gradient(model, _prediction(model, beta_hat), g)
    return g


def gradients(model: Model, V, a) -> tuple[np.ndarray, np.ndarray]:
    """(∂L/∂V, ∂L/∂a) at V (d, n), a (n) or (T, n), in the shapes of V and a.

    ∂L/∂V = g sᵀ and ∂L/∂a = Jᵀ Vᵀ g; tied, with q = Jᵀ Uᵀ g, ∂L/∂U = g sᵀ + q aᵀ and ∂L/∂a = Uᵀ q.
    """
    V, A = check_state(model, V, a)
    dV, dA = gradients_of_rows(model, V, A)
    return dV, dA.reshape(np.shape(a))


def gradients_of_rows(model: Model, V: np.ndarray, A: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`gradients` for scores A (T, n), unchecked: the right-hand side of the flow."""
    work = kernels.workspace(*V.shape, len(A))
    kernels.gradients(model, V, A, work)
    dV = work.G.T @ work.S
    if model.tied:
        dV += work.Q.T @ A
    return dV, work.A


def is_softmax(model: Model) -> bool:
    """Whether s = σ(a): softmax, not tied. What the paper proves is of such a model."""
    return model.normalisation == SOFTMAX and not model.tied


def _normalise(normalisation, z):
    checks.choice("normalisation", normalisation, NORMALISATIONS)
    z = checks.array("z", z, ndim=1)
    s, slope = np.empty_like(z), np.empty_like(z)
    kernels.normalise(NORMALISATIONS.index(normalisation), z, s, slope)
    return s, slope


def _prediction(model, beta_hat):
    beta_hat = checks.array("beta_hat", beta_hat, ndim=1)
    checks.shape("beta_hat", beta_hat, model.X.shape[1:], "the d of the target")
    return beta_hat
