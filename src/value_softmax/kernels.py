"""The compiled core: normalisations, losses, gradients and the descent loop (numba, cached on disk).

A step runs in scalar loops over arrays that exist already, so that one of ten coordinates takes 100 to
600 ns. The loss and the normalisation are picked by number inside the loop: a well-predicted branch costs
nothing beside an exponential, and one compilation serves every model.

All of it is one file on purpose: numba's disk cache watches only the file of the function that it cached, so
a formula kept elsewhere could change without the loop being compiled again.
"""

import math
from typing import NamedTuple

import numpy as np
from numba import njit

LOSSES = ("logistic", "square", "regression", "cross-entropy")
LOGISTIC, SQUARE, REGRESSION, CROSS_ENTROPY = range(4)

NORMALISATIONS = ("L1", "Sum", "L2", "Softmax", "ReLU", "Sigmoid")
L1, SUM, L2, SOFTMAX, RELU, SIGMOID = range(6)
EPSILON = 1e-10  # in the denominators of L1, Sum, L2 and ReLU, whose sums can vanish

# Nothing here allocates, so numba need not count references (`_nrt`): counting took three quarters of a step.
OPTIONS = {"cache": True, "error_model": "numpy", "forceinline": True, "_nrt": False}
compiled = njit(**OPTIONS)


class Model(NamedTuple):
    """A model as the loops read it; `model.value_softmax` makes it from names, and checks it."""

    loss: int  # index into LOSSES
    target: np.ndarray  # β or p* (d), or y (samples)
    X: np.ndarray  # (samples, d); (0, d) unless the loss is regression
    normalisation: int  # index into NORMALISATIONS
    tied: bool  # one matrix U for keys and values: V = U and z = U a


class Work(NamedTuple):
    """What an evaluation of the gradients leaves behind, for T rows of scores."""

    z: np.ndarray  # (n) the argument of α
    slope: np.ndarray  # (n) f'(z) / Σf
    w: np.ndarray  # (n) Vᵀ g
    S: np.ndarray  # (T, n) s = α(z)
    Q: np.ndarray  # (T, n) q = ∂L/∂z
    A: np.ndarray  # (T, n) ∂L/∂a
    B: np.ndarray  # (T, d) β̂ = V s
    G: np.ndarray  # (T, d) g = ∂L/∂β̂


def workspace(d: int, n: int, rows: int) -> Work:
    """Arrays for `gradients` to write into, step after step."""
    shapes = [(n,)] * 3 + [(rows, n)] * 3 + [(rows, d)] * 2
    return Work(*map(np.empty, shapes))


# Linear algebra without temporaries.

summing = njit(**OPTIONS, fastmath={"reassoc", "contract"})  # the terms in any order, several at a time


@summing
def dot(x, y):
    """⟨x, y⟩ of two vectors."""
    total = 0.0
    for i in range(x.size):
        total += x[i] * y[i]
    return total


@compiled
def times(V, s, out):
    """`out` = V s."""
    for i in range(V.shape[0]):
        out[i] = dot(V[i], s)


@compiled
def transposed_times(V, g, out):
    """`out` = Vᵀ g, read along the rows of V."""
    for j in range(V.shape[1]):
        out[j] = 0.0
    for i in range(V.shape[0]):
        for j in range(V.shape[1]):
            out[j] += V[i, j] * g[i]


@compiled
def add_outer(V, scale, G, S):
    """V += scale Σ_t g_t s_tᵀ for rows g_t (d) of G and s_t (n) of S."""
    for t in range(G.shape[0]):
        for i in range(V.shape[0]):
            for j in range(V.shape[1]):
                V[i, j] += scale * G[t, i] * S[t, j]


@compiled
def add(x, scale, y):
    """x += scale y for vectors."""
    for i in range(x.size):
        x[i] += scale * y[i]


@compiled
def copy(x, out):
    """`out` = x for vectors."""
    for i in range(x.size):
        out[i] = x[i]


@compiled
def largest(x):
    """The largest entry of a vector."""
    top = x[0]
    for i in range(x.size):
        top = max(top, x[i])
    return top


# Normalisations: α(z) = f(z) / Σf(z), all but the sigmoid, which has no sum.


@compiled
def sigmoid(x):
    """1 / (1 + exp(-x))."""
    return 1.0 / (1.0 + math.exp(-x))


@compiled
def softmax(z, s):
    """`s` = σ(z). The largest term is scaled to 1, so that the sum cannot vanish and needs no EPSILON."""
    top, total = largest(z), 0.0
    for j in range(z.size):
        s[j] = math.exp(z[j] - top)
        total += s[j]
    for j in range(z.size):
        s[j] /= total


@compiled
def unnormalised(kind, z):
    """f(z) and f'(z) of one score, for every normalisation but softmax."""
    if kind == L1:
        return abs(z), np.sign(z)
    if kind == SUM:
        return z, 1.0
    if kind == L2:
        return z * z, 2.0 * z
    if kind == RELU:
        return max(z, 0.0), 1.0 if z > 0.0 else 0.0
    f = sigmoid(z)
    return f, f * (1.0 - f)


@compiled
def normalise(kind, z, s, slope):
    """`s` = α(z) and `slope` = f'(z) / Σf, all that the Jacobian needs."""
    if kind == SOFTMAX:
        softmax(z, s)
        copy(s, slope)
        return
    total = EPSILON
    for j in range(z.size):
        s[j], slope[j] = unnormalised(kind, z[j])
        total += s[j]
    if kind != SIGMOID:
        for j in range(z.size):
            s[j] /= total
            slope[j] /= total


@compiled
def pull_back(kind, s, slope, w, q):
    """`q` = Jᵀ w, J = ∂α/∂z = diag(slope) - s slopeᵀ; for softmax, diag(s) - s sᵀ."""
    mean = 0.0 if kind == SIGMOID else dot(s, w)
    for j in range(s.size):
        q[j] = slope[j] * (w[j] - mean)


# Losses of one prediction b = β̂ (d).


@compiled
def loss_value(model, b):
    """L(β̂)."""
    y = model.target
    total = 0.0
    if model.loss == LOGISTIC:
        margin = dot(y, b)
        return math.log1p(math.exp(-abs(margin))) + max(-margin, 0.0)
    if model.loss == SQUARE:
        for i in range(b.size):
            total += 0.5 * (b[i] - y[i]) ** 2
        return total
    if model.loss == REGRESSION:
        for k in range(y.size):
            total += (y[k] - dot(model.X[k], b)) ** 2
        return total
    top = largest(b)
    for i in range(b.size):
        total += math.exp(b[i] - top)
    return top + math.log(total) - dot(y, b)  # Σ p* = 1


@compiled
def loss_gradient(model, b, g):
    """`g` = ∂L/∂β̂."""
    y = model.target
    for i in range(b.size):
        g[i] = 0.0
    if model.loss == LOGISTIC:
        add(g, -sigmoid(-dot(y, b)), y)
    elif model.loss == SQUARE:
        add(g, 1.0, b)
        add(g, -1.0, y)
    elif model.loss == REGRESSION:
        for k in range(y.size):
            add(g, -2.0 * (y[k] - dot(model.X[k], b)), model.X[k])
    else:
        softmax(b, g)
        add(g, -1.0, y)


# The model: the mean over rows a_t of the scores A (T, n) of L(V α(a_t)); tied, V = U and L(U α(U a_t)).


@compiled
def forward(model, V, a, z, s, slope, b):
    """From one row of scores: `z`, `s` = α(z) with its `slope`, and the prediction `b` = V s."""
    if model.tied:
        times(V, a, z)
    else:
        copy(a, z)
    normalise(model.normalisation, z, s, slope)
    times(V, s, b)


@compiled
def gradients(model, V, A, work):
    """∂L/∂a into `work.A` and, in factors, ∂L/∂V = Σ_t g_t s_tᵀ (tied: + Σ_t q_t a_tᵀ)."""
    rows = A.shape[0]
    for t in range(rows):
        g, s, q = work.G[t], work.S[t], work.Q[t]
        forward(model, V, A[t], work.z, s, work.slope, work.B[t])
        loss_gradient(model, work.B[t], g)
        if rows > 1:
            for i in range(g.size):
                g[i] /= rows
        transposed_times(V, g, work.w)
        pull_back(model.normalisation, s, work.slope, work.w, q)
        if model.tied:
            transposed_times(V, q, work.A[t])
        else:
            copy(q, work.A[t])


@summing
def finite(work, A):
    """Whether the scores A and all gradients are, by their sum; an entry of V that is not makes a gradient so."""
    total = 0.0
    for t in range(work.G.shape[0]):
        for i in range(work.G.shape[1]):
            total += work.G[t, i]
        for j in range(work.A.shape[1]):
            total += work.A[t, j] + A[t, j]
    return math.isfinite(total)


@compiled
def move(model, V, A, scale, work):
    """V, A += scale · the gradients that `gradients` left in `work` for the scores A."""
    add_outer(V, scale, work.G, work.S)
    if model.tied:
        add_outer(V, scale, work.Q, A)
    for t in range(A.shape[0]):
        add(A[t], scale, work.A[t])


@compiled
def descend(model, V, A, lr, start, stop, record, written, V_record, A_record, work):
    """From the state after `start` steps to that after `stop`, on V (d, n) and A (T, n) in place.

    The states after the steps in `record` are written down once their gradients are known to be finite, the first
    `written` of them having been already. Returns how many are now, and the step of the last state with finite
    gradients: `stop`, unless descent diverged.
    """
    for k in range(start, stop + 1):
        gradients(model, V, A, work)
        if not finite(work, A):
            return written, k - 1
        if written < record.size and record[written] == k:
            copy(V.reshape(-1), V_record[written].reshape(-1))
            copy(A.reshape(-1), A_record[written].reshape(-1))
            written += 1
        if k < stop:
            move(model, V, A, -lr, work)
    return written, stop


@compiled
def evaluate(model, V, A, work, S, B, losses):
    """Weights S (R, T, n), predictions B (R, T, d) and losses (R) of the states V (R, d, n), A (R, T, n)."""
    rows = A.shape[1]
    for r in range(V.shape[0]):
        losses[r] = 0.0
        for t in range(rows):
            forward(model, V[r], A[r, t], work.z, S[r, t], work.slope, B[r, t])
            losses[r] += loss_value(model, B[r, t]) / rows
