"""The value-softmax model L(V σ(a)): losses, normalisations and gradients as pure functions of arrays.

Section 3 of the paper. A value matrix V (d, n) and scores a (n) give weights s = α(a) and the prediction
β̂ = V s. Scores (T, n) are one row for each of T queries, which share V; the loss is the mean over rows
(Section 4.1, attention sinks). Tied, one square matrix V = U holds keys and values, and s = α(U a).

The formulas are in `kernels`; here they have names and checked input.
"""

import numpy as np

from src.value_softmax import checks, kernels
from src.value_softmax.kernels import LOSSES, NORMALISATIONS, SOFTMAX, TABLE, Model

UNIT = 1e-9  # how far a norm, or the sum of a distribution, may be from 1


def value_softmax(
    loss: str, target, normalisation: str = "Softmax", *, option: float | None = None, X=None, tied: bool = False
) -> Model:
    """The model with that loss and normalisation, by their names in LOSSES and NORMALISATIONS.

    `option` is the constant of a normalisation that has one: α in [1, 2] of entmax (1.5 where none is given), γ in
    [-1, 0] of softmax_clipped (-0.03). softmax_sink and ssmax have a parameter that is trained: it stands behind the
    scores, so that a is (n + 1).

    loss             L(β̂)                          target
    "logistic"       log(1 + exp(-⟨β, β̂⟩))         β (d), ‖β‖ = 1
    "square"         ½ ‖β̂ - β‖²                     β (d)
    "regression"     ‖y - X β̂‖²                     y (samples), with X (samples, d)
    "cross-entropy"  -Σ p*ᵢ log softmax(β̂)ᵢ         p* (d), a distribution
    "linear"         -⟨β, β̂⟩                        β (d)

    Raises ValueError for an unknown name, an option out of its range, and a target or X that does not fit the loss.
    """
    checks.choice("loss", loss, LOSSES)
    option = constant(normalisation, option)
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
    return Model(LOSSES.index(loss), target, X, NORMALISATIONS.index(normalisation), option, bool(tied))


def constant(normalisation: str, option: float | None = None) -> float:
    """The constant of a normalisation, its default for None; ValueError for an unknown name or one out of range."""
    row = TABLE[checks.choice("normalisation", normalisation, NORMALISATIONS)]
    if option is None:
        return row.option
    if row.allowed == (0.0, 0.0):
        raise ValueError(f"option is {option!r}: {normalisation} has no constant, leave it out")
    return checks.within("option", option, *row.allowed)


def parameters(model: Model) -> int:
    """How many parameters of the normalisation stand behind the scores."""
    return TABLE[NORMALISATIONS[model.normalisation]].parameters


def solver(normalisation: str, option: float | None = None) -> str:
    """SciPy's method for the flow under that normalisation; ValueError for one without a flow.

    LSODA, which is at ease with the slow ends of polarization, cannot cross a jump of the derivative (entmax with
    α > 3/2, ReLU, relu_mean, softmax_clipped, where a score leaves the support). DOP853 can, its steps growing small
    there; on either side the derivative is the one of that side.
    """
    option, row = constant(normalisation, option), TABLE[normalisation]
    if row.slides:
        raise ValueError(
            f"normalisation is {normalisation!r}: its scores come to rest on its kink at 0, where it has no derivative "
            "and so no flow; follow it by `descend`"
        )
    return "LSODA" if option <= row.smooth else "DOP853"


def check_state(model: Model, V, a) -> tuple[np.ndarray, np.ndarray]:
    """Copies of the values V (d, n) and of the scores as rows A (T, n + p), where a is (n + p) or (T, n + p).

    Raises ValueError for shapes that do not fit each other or the model, and for non-finite entries.
    """
    V, a = checks.array("V", V, ndim=2), checks.array("a", a, ndim=(1, 2))
    d, n = model.X.shape[1], a.shape[-1] - parameters(model)
    checks.shape("V", V, (d, n), f"d = {d} from the target and n = {n} from a")
    if model.tied and V.shape[0] != V.shape[1]:
        raise ValueError(f"V has shape {V.shape}: the tied model needs it square, with as many scores as entries in β")
    return V, np.atleast_2d(a)


def alpha(normalisation: str, z, option: float | None = None) -> np.ndarray:
    """The weights α(z) (n) of scores z (n + p), the normalisation's p parameters last."""
    return _normalise(normalisation, z, option)[1]


def alpha_vjp(normalisation: str, z, w, option: float | None = None) -> np.ndarray:
    """Jᵀ w (n + p), with J = ∂α/∂z (n, n + p) at z (n + p), for w (n)."""
    z, s, slope = _normalise(normalisation, z, option)
    w = checks.array("w", w, ndim=1)
    checks.shape("w", w, s.shape, "that of the weights")
    return pull_back(NORMALISATIONS.index(normalisation), constant(normalisation, option), z, s, slope, w)


def pull_back(kind: int, option: float, z, s, slope, w) -> np.ndarray:
    """Jᵀ w (n + p), unchecked, after `kernels.normalise`."""
    q = np.empty_like(z)
    kernels.pull_back(kind, option, z, s, slope, w, q)
    return q


def alphas(normalisation: str, z, option: float | None = None) -> np.ndarray:
    """The weights (R, n) of R vectors of scores z (R, n + p)."""
    option, z = constant(normalisation, option), checks.array("z", z, ndim=2)
    n = z.shape[1] - TABLE[normalisation].parameters
    S = np.empty((len(z), n))
    kernels.normalise_rows(NORMALISATIONS.index(normalisation), option, z, np.empty(n + 1), S)
    return S


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
    """`gradients` for scores A (T, n + p), unchecked: the right-hand side of the flow."""
    work = kernels.workspace(*V.shape, len(A), parameters(model))
    kernels.gradients(model, V, A, work)
    dV = work.G.T @ work.S
    if model.tied:
        n = V.shape[1]
        dV += work.Q[:, :n].T @ A[:, :n]
    return dV, work.A


def is_softmax(model: Model) -> bool:
    """Whether s = σ(a): softmax, not tied. What the paper proves is of such a model."""
    return model.normalisation == SOFTMAX and not model.tied


def _normalise(normalisation, z, option):
    option, z = constant(normalisation, option), checks.array("z", z, ndim=1)
    n = z.size - TABLE[normalisation].parameters
    if n < 1:
        raise ValueError(f"z has shape {z.shape}: {normalisation} takes at least one score before its parameter")
    s, slope = np.empty(n), np.empty(n + 1)
    kernels.normalise(NORMALISATIONS.index(normalisation), option, z, s, slope)
    return z, s, slope


def _prediction(model, beta_hat):
    beta_hat = checks.array("beta_hat", beta_hat, ndim=1)
    checks.shape("beta_hat", beta_hat, model.X.shape[1:], "the d of the target")
    return beta_hat
