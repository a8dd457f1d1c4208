"""The compiled core: normalisations, losses, gradients and the descent loop (numba, cached on disk where it can be).

A step runs in scalar loops over arrays that exist already, so that one of ten coordinates takes 100 to
600 ns. The loss and the normalisation are picked by number inside the loop: a well-predicted branch costs
nothing beside an exponential, and one compilation serves every model.

All of it is one file on purpose: numba's disk cache watches only the file of the function that it cached, so
a formula kept elsewhere could change without the loop being compiled again.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numba import njit

LOSSES = ("logistic", "square", "regression", "cross-entropy", "linear")
LOGISTIC, SQUARE, REGRESSION, CROSS_ENTROPY, LINEAR = range(5)

OPTIMIZERS = ("sgd", "momentum", "sign", "adam", "adamw")
SGD, MOMENTUM, SIGN, ADAM, ADAMW = range(5)

EPSILON = 1e-10  # in the denominators of L1, Sum, L2 and ReLU, whose sums can vanish
SOFTPICK_EPSILON = 1e-8  # in softpick's, as published


def has_cache() -> bool:
    """Whether numba finds a folder for what it compiles; there is none in a read-only checkout without a home."""
    try:
        njit(cache=True)(has_cache)
    except RuntimeError:
        return False
    return True


# Nothing here allocates, so numba need not count references (`_nrt`): counting took three quarters of a step.
INLINED = {"error_model": "numpy", "forceinline": True, "_nrt": False}
OPTIONS = INLINED | {"cache": has_cache()}
compiled = njit(**OPTIONS)
called = njit(**OPTIONS | {"forceinline": False})  # what is large, and compiled once for all its callers
part = njit(**INLINED)  # made by another function, so that a cache on disk would not find it again


class Model(NamedTuple):
    """A model as the loops read it; `model.value_softmax` makes it from names, and checks it."""

    loss: int  # index into LOSSES
    target: np.ndarray  # β or p* (d), or y (samples)
    X: np.ndarray  # (samples, d); (0, d) unless the loss is regression
    normalisation: int  # index into NORMALISATIONS
    option: float  # the normalisation's constant: α of entmax, γ of softmax_clipped
    tied: bool  # one matrix U for keys and values: V = U and z = U a


class Rule(NamedTuple):
    """An optimiser as the loop reads it; `descent.rule` makes it from names, and checks it."""

    kind: int  # index into OPTIMIZERS
    beta1: float  # of Adam; momentum's μ
    beta2: float
    eps: float
    decay: float  # λ: every step first multiplies all by 1 - lr λ


class Moments(NamedTuple):
    """What an optimiser remembers of the gradients, and the gradient itself, in the shapes of V and A."""

    V_first: np.ndarray
    V_second: np.ndarray
    A_first: np.ndarray
    A_second: np.ndarray
    V_gradient: np.ndarray


def moments(V, A) -> Moments:
    """Zeros for V (d, n) and A (T, n + parameters)."""
    return Moments(*(np.zeros_like(x) for x in (V, V, A, A, V)))


class Work(NamedTuple):
    """What an evaluation of the gradients leaves behind, for T rows of scores."""

    z: np.ndarray  # (n + p) the argument of α, its p parameters last
    slope: np.ndarray  # (n + 1) what the normalisation keeps for its Jacobian product
    w: np.ndarray  # (n) Vᵀ g
    S: np.ndarray  # (T, n) s = α(z)
    Q: np.ndarray  # (T, n + p) q = ∂L/∂z
    A: np.ndarray  # (T, n + p) ∂L/∂a
    B: np.ndarray  # (T, d) β̂ = V s
    G: np.ndarray  # (T, d) g = ∂L/∂β̂


def workspace(d: int, n: int, rows: int, parameters: int = 0) -> Work:
    """Arrays for `gradients` to write into, step after step."""
    m = n + parameters
    shapes = [(m,), (n + 1,), (n,), (rows, n), (rows, m), (rows, m), (rows, d), (rows, d)]
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


# Normalisations: s = α(z) of n scores, behind which z may hold the map's own parameters (p of them).
# Each is two functions. `weights(option, z, s, slope)` writes s, and in `slope` (n + 1) what its Jacobian needs;
# `pull_back(option, z, s, slope, w, q)` writes q = Jᵀ w (n + p), J = ∂α/∂z.


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
def softmax_weights(option, z, s, slope):
    """exp z / Σ exp z; slope = s, without an outlet."""
    softmax(z, s)
    copy(s, slope)
    slope[s.size] = 0.0


@compiled
def outlet(z, n, b, s, slope):
    """exp z / (exp b + Σ exp z): softmax over one more key, of score b and value 0; slope = s and its share s₀."""
    top, total = b, 0.0
    for j in range(n):
        top = max(top, z[j])
    for j in range(n):
        s[j] = math.exp(z[j] - top)
        total += s[j]
    total += math.exp(b - top)
    for j in range(n):
        s[j] /= total
        slope[j] = s[j]
    slope[n] = math.exp(b - top) / total


@compiled
def softmax1_weights(option, z, s, slope):
    """exp z / (1 + Σ exp z) (Miller 2023)."""
    outlet(z, s.size, 0.0, s, slope)


@compiled
def softmax_sink_weights(option, z, s, slope):
    """exp z / (exp b + Σ exp z), b the parameter behind the scores (gpt-oss 2025)."""
    outlet(z, s.size, z[s.size], s, slope)


@compiled
def simplex_pull_back(option, z, s, slope, w, q):
    """J = diag(g) - g gᵀ/Σg, g = slope, of which the outlet's entry has value 0.

    w_j - w̄ is taken from the value at the largest g, which is as exact as Σ_i g_i (w_j - w_i), in n terms, not n²: as
    s → e_m the winner's w_m - w̄ is a sum of the losers' small terms, where subtraction would leave rounding.
    """
    n, top = w.size, slope.size - 1
    for j in range(n):
        if slope[j] > slope[top]:
            top = j
    shift = w[top] if top < n else 0.0
    total, mean = slope[n], slope[n] * (0.0 - shift)
    for j in range(n):
        total += slope[j]
        mean += slope[j] * (w[j] - shift)
    mean /= total
    for j in range(n):
        q[j] = slope[j] * (w[j] - shift - mean)
    if q.size > n:
        q[n] = slope[n] * (0.0 - shift - mean)


@compiled
def descending(z, n, out):
    """`out` = the first n of z, the largest first."""
    for j in range(n):
        i = j
        while i > 0 and out[i - 1] < z[j]:
            out[i] = out[i - 1]
            i -= 1
        out[i] = z[j]


@compiled
def sparsemax_threshold(x):
    """τ with Σ (x - τ)₊ = 1 over falling x, from the largest support (Martins & Astudillo 2016)."""
    total, threshold = 0.0, 0.0
    for k in range(x.size):
        if k > 0 and x[k] <= threshold:
            break
        total += x[k]
        threshold = (total - 1.0) / (k + 1)
    return threshold


@compiled
def entmax15_threshold(x):
    """τ with Σ (x - τ)₊² = 1 over falling x ≤ 0 (Peters et al. 2019): the smaller root of a quadratic."""
    total, squares, threshold = 0.0, 0.0, 0.0
    for k in range(x.size):
        if k > 0 and x[k] <= threshold:
            break
        total += x[k]
        squares += x[k] * x[k]
        mean = total / (k + 1)
        threshold = mean - math.sqrt(max(0.0, (1.0 - squares + total * mean) / (k + 1)))
    return threshold


@compiled
def entmax_threshold(r, x):
    """c with Σ (1 + r (x - c))₊^{1/r} = 1, r = α - 1, over falling x from 0.

    The sum falls in c and is convex, so Newton's steps from c = 0, where it is at least 1, rise to the root and never
    pass it. They end where they no longer rise, or at rounding.
    """
    c = 0.0
    for _ in range(100):
        total, slope = -1.0, 0.0
        for j in range(x.size):
            base = r * (x[j] - c)
            if base <= -1.0:
                break
            log_base = math.log1p(base)
            total += math.exp(log_base / r)
            slope += math.exp(log_base * (1.0 - r) / r)
        step = total / slope
        if step <= 1e-16 * (1.0 + c):
            break
        c += step
    return c


@called
def entmax_weights(alpha, z, s, slope):
    """[(α-1) z - τ]₊^{1/(α-1)} with sum 1; slope g = s^{2-α} on the support. Closed forms at α = 1, 1.5 and 2."""
    n, r = s.size, alpha - 1.0
    if r == 0.0:
        softmax_weights(alpha, z, s, slope)
        return
    top = largest(z)
    scale = r if r == 0.5 or r == 1.0 else 1.0
    for j in range(n):
        s[j] = scale * (z[j] - top)
    ordered = slope[:n]
    descending(s, n, ordered)
    if r == 1.0:
        threshold = sparsemax_threshold(ordered)
        for j in range(n):
            s[j] = max(s[j] - threshold, 0.0)
            slope[j] = 1.0 if s[j] > 0.0 else 0.0
    elif r == 0.5:
        threshold = entmax15_threshold(ordered)
        for j in range(n):
            slope[j] = max(s[j] - threshold, 0.0)
            s[j] = slope[j] * slope[j]
    else:
        threshold = entmax_threshold(r, ordered)
        for j in range(n):
            base = r * (s[j] - threshold)
            log_base = math.log1p(base) if base > -1.0 else -math.inf
            s[j] = math.exp(log_base / r)
            slope[j] = math.exp(log_base * (1.0 - r) / r)
    slope[n] = 0.0


def quotient(f):
    """The weights f(z) / (Σf(z) + ε), from f(z) → (f, f'); slope = f' / (Σf + ε), and the share of ε at its end."""

    @part
    def weights(option, z, s, slope):
        total = EPSILON
        for j in range(s.size):
            s[j], slope[j] = f(z[j])
            total += s[j]
        for j in range(s.size):
            s[j] /= total
            slope[j] /= total
        slope[s.size] = EPSILON / total

    return weights


@compiled
def quotient_pull_back(option, z, s, slope, w, q):
    """J = diag(slope) - s slopeᵀ, w_j - ⟨s, w⟩ being taken from the value at the largest s."""
    n, top = s.size, 0
    for j in range(n):
        if s[j] > s[top]:
            top = j
    mean = -slope[n] * w[top]
    for j in range(n):
        mean += s[j] * (w[j] - w[top])
    for j in range(n):
        q[j] = slope[j] * (w[j] - w[top] - mean)


@compiled
def absolute(z):
    """|z| and its derivative."""
    return abs(z), np.sign(z)


@compiled
def identity(z):
    """z and its derivative."""
    return z, 1.0


@compiled
def squared(z):
    """z² and its derivative."""
    return z * z, 2.0 * z


@compiled
def relu(z):
    """max(z, 0) and its derivative, 0 at 0."""
    return max(z, 0.0), 1.0 if z > 0.0 else 0.0


@compiled
def sigmoid_weights(option, z, s, slope):
    """1 / (1 + exp(-z)), not normalised; slope = s (1 - s)."""
    for j in range(s.size):
        s[j] = sigmoid(z[j])
        slope[j] = s[j] * sigmoid(-z[j])


@compiled
def relu_mean_weights(option, z, s, slope):
    """max(z, 0) / n (Wortsman et al. 2023)."""
    for j in range(s.size):
        f, derivative = relu(z[j])
        s[j], slope[j] = f / s.size, derivative / s.size


@compiled
def separate_pull_back(option, z, s, slope, w, q):
    """J = diag(slope)."""
    for j in range(s.size):
        q[j] = slope[j] * w[j]


@compiled
def softpick_weights(option, z, s, slope):
    """(exp z - 1)₊ / (Σ|exp z - 1| + ε) (Zuhri et al. 2025), all times exp(-max(z, 0)); slope = exp z / (Σ + ε)."""
    top = max(largest(z), 0.0)
    one = math.exp(-top)
    total = SOFTPICK_EPSILON * one
    for j in range(s.size):
        f = one * math.expm1(z[j]) if z[j] < 1.0 else math.exp(z[j] - top) - one
        total += abs(f)
        s[j], slope[j] = max(f, 0.0), math.exp(z[j] - top)
    for j in range(s.size):
        s[j] /= total
        slope[j] /= total


@compiled
def softpick_pull_back(option, z, s, slope, w, q):
    """J = diag(slope ∘ 1[z > 0]) - s (slope ∘ sign z)ᵀ."""
    mean = dot(s, w)
    for j in range(s.size):
        q[j] = slope[j] * ((w[j] if z[j] > 0.0 else 0.0) - np.sign(z[j]) * mean)


@compiled
def clipped_weights(gamma, z, s, slope):
    """clip((1 - γ) σ(z) + γ, 0, 1), γ ≤ 0 (Bondarenko et al. 2023); slope = σ(z)."""
    softmax(z, s)
    for j in range(s.size):
        slope[j] = s[j]
        s[j] = min(max((1.0 - gamma) * s[j] + gamma, 0.0), 1.0)


@compiled
def clipped_pull_back(gamma, z, s, slope, w, q):
    """Softmax's product with (1 - γ) w where nothing is clipped, and 0 where it is."""
    mean = 0.0
    for j in range(s.size):
        q[j] = (1.0 - gamma) * w[j] if s[j] > 0.0 else 0.0
        mean += slope[j] * q[j]
    for j in range(s.size):
        q[j] = slope[j] * (q[j] - mean)


@compiled
def ssmax_weights(option, z, s, slope):
    """σ(h log n z), h the parameter behind the scores (Nakanishi 2025); slope = s."""
    n = s.size
    scale = z[n] * math.log(n)
    for j in range(n):
        slope[j] = scale * z[j]
    softmax(slope[:n], s)
    copy(s, slope)
    slope[n] = 0.0


@compiled
def ssmax_pull_back(option, z, s, slope, w, q):
    """Softmax's product times h log n, and for h its product with z, times log n."""
    n = s.size
    simplex_pull_back(option, z, s, slope, w, q[:n])
    q[n] = 0.0
    for j in range(n):
        q[n] += math.log(n) * z[j] * q[j]
        q[j] *= z[n] * math.log(n)


class Normalisation(NamedTuple):
    """One row of the table below."""

    weights: Callable
    pull_back: Callable
    parameters: int = 0  # how many of the map's own stand behind the scores
    option: float = 0.0  # the constant it takes, where none is given
    allowed: tuple[float, float] = (0.0, 0.0)  # the constant's least and largest value
    smooth: float = math.inf  # the constant up to which its derivative has no jump
    slides: bool = False  # scores come to rest on a kink, where no derivative holds them: it has no flow


TABLE = {
    "L1": Normalisation(quotient(absolute), quotient_pull_back, slides=True),
    "Sum": Normalisation(quotient(identity), quotient_pull_back),
    "L2": Normalisation(quotient(squared), quotient_pull_back),
    "Softmax": Normalisation(softmax_weights, simplex_pull_back),
    "ReLU": Normalisation(quotient(relu), quotient_pull_back, smooth=-1.0),
    "Sigmoid": Normalisation(sigmoid_weights, separate_pull_back),
    "softmax1": Normalisation(softmax1_weights, simplex_pull_back),
    "softmax_sink": Normalisation(softmax_sink_weights, simplex_pull_back, parameters=1),
    "entmax": Normalisation(entmax_weights, simplex_pull_back, option=1.5, allowed=(1.0, 2.0), smooth=1.5),
    "softpick": Normalisation(softpick_weights, softpick_pull_back, slides=True),
    "relu_mean": Normalisation(relu_mean_weights, separate_pull_back, smooth=-1.0),
    "softmax_clipped": Normalisation(
        clipped_weights, clipped_pull_back, option=-0.03, allowed=(-1.0, 0.0), smooth=-2.0
    ),
    "ssmax": Normalisation(ssmax_weights, ssmax_pull_back, parameters=1),
}
NORMALISATIONS = tuple(TABLE)
PAPERS_NORMALISATIONS = NORMALISATIONS[:6]
SOFTMAX = NORMALISATIONS.index("Softmax")


def either(functions):
    """A compiled function (kind, …) that calls the kind-th of `functions` with the rest.

    Written as source, since numba's loops hold no table of functions, and nested pairs of them took twice as long to
    compile.
    """
    cases = [f"    if kind == {kind}: f{kind}(*rest)" for kind in range(len(functions))]
    names = {f"f{kind}": function for kind, function in enumerate(functions)}
    exec("\n".join(["def call(kind, *rest):", *cases]), names)
    return part(names["call"])


_weights = either([row.weights for row in TABLE.values()])
_pull_back = either([row.pull_back for row in TABLE.values()])


@called
def normalise(kind, option, z, s, slope):
    """`s` = α(z) (n) of z (n + p), and `slope` (n + 1), all that `pull_back` needs."""
    _weights(kind, option, z, s, slope)


@called
def pull_back(kind, option, z, s, slope, w, q):
    """`q` = Jᵀ w (n + p), J = ∂α/∂z, after `normalise`."""
    _pull_back(kind, option, z, s, slope, w, q)


@compiled
def normalise_rows(kind, option, Z, slope, S):
    """S (R, n) = α of each row of Z (R, n + p)."""
    for r in range(Z.shape[0]):
        _weights(kind, option, Z[r], S[r], slope)


# Losses of one prediction b = β̂ (d).


@compiled
def loss_value(model, b):
    """L(β̂)."""
    y = model.target
    total = 0.0
    if model.loss == LOGISTIC:
        margin = dot(y, b)
        return math.log1p(math.exp(-abs(margin))) + max(-margin, 0.0)
    if model.loss == LINEAR:
        return -dot(y, b)
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
    elif model.loss == LINEAR:
        add(g, -1.0, y)
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
    copy(a, z)
    if model.tied:
        times(V, a, z)  # the scores; parameters behind them stay
    normalise(model.normalisation, model.option, z, s, slope)
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
        pull_back(model.normalisation, model.option, work.z, s, work.slope, work.w, q)
        copy(q, work.A[t])
        if model.tied:
            transposed_times(V, q, work.A[t])


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


# Optimisers, on vectors x with gradient g: one step of learning rate lr, as PyTorch's.


@compiled
def remember(x, g, first, mu, lr):
    """Momentum: m = μ m + g, x -= lr m."""
    for i in range(x.size):
        first[i] = mu * first[i] + g[i]
        x[i] -= lr * first[i]


@compiled
def signed(x, g, lr):
    """x -= lr sign(g), sign(0) = 0."""
    for i in range(x.size):
        x[i] -= lr * np.sign(g[i])


@summing
def adam(x, g, first, second, rule, lr, k):
    """Step k = 1, 2, … of Adam: x -= lr m̂ / (√v̂ + ε). A gradient that always was 0 moves nothing, also for ε = 0."""
    size = lr / (1.0 - rule.beta1**k)
    root = 1.0 / math.sqrt(1.0 - rule.beta2**k)
    for i in range(x.size):
        first[i] += (1.0 - rule.beta1) * (g[i] - first[i])
        second[i] = rule.beta2 * second[i] + (1.0 - rule.beta2) * g[i] * g[i]
        scale = math.sqrt(second[i]) * root + rule.eps
        x[i] -= size * first[i] / (scale if scale > 0.0 else 1.0)


@called
def update(rule, x, g, first, second, lr, k):
    """Step k = 1, 2, … of the optimiser on the vector x, decay first."""
    if rule.decay > 0.0:
        for i in range(x.size):
            x[i] *= 1.0 - lr * rule.decay
    if rule.kind == SGD:
        add(x, -lr, g)
    elif rule.kind == MOMENTUM:
        remember(x, g, first, rule.beta1, lr)
    elif rule.kind == SIGN:
        signed(x, g, lr)
    else:
        adam(x, g, first, second, rule, lr, k)


@compiled
def step(model, rule, V, A, lr, k, work, memory):
    """Step k = 1, 2, … of the optimiser by the gradients that `gradients` left in `work`."""
    if rule.kind == SGD and rule.decay == 0.0:
        move(model, V, A, -lr, work)
        return
    dV = memory.V_gradient
    for i in range(dV.shape[0]):
        for j in range(dV.shape[1]):
            dV[i, j] = 0.0
    add_outer(dV, 1.0, work.G, work.S)
    if model.tied:
        add_outer(dV, 1.0, work.Q, A)
    first, second = memory.V_first.reshape(-1), memory.V_second.reshape(-1)
    update(rule, V.reshape(-1), dV.reshape(-1), first, second, lr, k)
    for t in range(A.shape[0]):
        update(rule, A[t], work.A[t], memory.A_first[t], memory.A_second[t], lr, k)


@compiled
def descend(model, rule, V, A, lr, start, stop, record, written, V_record, A_record, work, memory):
    """From the state after `start` steps to that after `stop`, on V (d, n) and A (T, n + p) in place.

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
            step(model, rule, V, A, lr, k + 1, work, memory)
    return written, stop


@compiled
def evaluate(model, V, A, work, S, B, losses):
    """Weights S (R, T, n), predictions B (R, T, d) and losses (R) of the states V (R, d, n), A (R, T, n + p)."""
    rows = A.shape[1]
    for r in range(V.shape[0]):
        losses[r] = 0.0
        for t in range(rows):
            forward(model, V[r], A[r, t], work.z, S[r, t], work.slope, B[r, t])
            losses[r] += loss_value(model, B[r, t]) / rows
