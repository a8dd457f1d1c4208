"""Adam on the value-softmax model: its gain on gradients that shrink, the rates that follow, and the winner.

A gradient that falls like e^{-ρk} gets steps of η φ(ρ), 0 beyond ρ* = -½ ln β₂: Adam forgets no faster than its second
moment. So gaps of u grow at every learning rate, and no weight falls faster than that. Each step is normalised by the
coordinate's own past; where that undoes the differences of u(0), the winner is not argmax u(0).
"""

import numpy as np
from scipy.integrate import solve_ivp
from scipy.optimize import brentq

from src.value_softmax import checks
from src.value_softmax.descent import descend, rule
from src.value_softmax.model import gradients, value_softmax
from src.value_softmax.trajectory import Trajectory

BETAS = (0.9, 0.999)


def gain(rho: float, betas=BETAS) -> float:
    """φ(ρ): the size of a step, over η, for a gradient that goes like e^{-ρk}; 0 from ρ* = -½ ln β₂ on (ε = 0)."""
    beta1, beta2 = betas
    inside = 1 - beta2 * np.exp(2 * rho)
    return float((1 - beta1) / (1 - beta1 * np.exp(rho)) * np.sqrt(inside / (1 - beta2))) if inside > 0 else 0.0


def memory(lr: float, betas=BETAS) -> float:
    """h = 4η/(1-β₂): the time of the second moment over that in which sign descent polarizes, up to a factor."""
    return 4 * checks.positive("lr", lr) / (1 - betas[1])


def linear_rates(lr: float, betas=BETAS) -> tuple[float, float]:
    """n = 2, linear loss: the loser's fall of ln s a step over η, and the gap's growth over cη: 2z and 1 - z.

    z = (√(h² + 4) - h)/2. From x = 2η φ(x), with φ ≈ √(1 - x/ρ*).
    """
    h = memory(lr, betas)
    z = (np.hypot(h, 2) - h) / 2
    return 2 * z, 1 - z


def logistic_rates(lr: float, speed: float, betas=BETAS, k: float = np.inf) -> tuple[float, float, float]:
    """Logistic loss, late: (y, x, growth of the gaps) a step. y is the fall of γ and the growth of the margin,
    y = cη φ(y) with c = `speed` = ‖β‖₁; x that of ln s, x = 2η φ(x + y - 1/k); growth = cη (φ(y) - φ(x + y)).

    1/k, k the step, is the growth of the gap that a's gradient has as a factor.
    """
    limit = -0.5 * np.log(betas[1])
    y = brentq(lambda y: y - speed * lr * gain(y, betas), 0, limit)
    x = brentq(lambda x: x - 2 * lr * gain(x + y - 1 / k, betas), 0, limit + 1 / k)
    return y, x, speed * lr * (gain(y, betas) - gain(x + y, betas))


def measured_rates(run: Trajectory, part: float = 0.1) -> tuple[float, float, float]:
    """The same three a step over the last `part` of the steps: of ū, of the runner-up's ln s, of its gap."""
    last = run.steps >= run.steps[-1] * (1 - part)
    order = np.argsort(-run.s[-1])[:2]
    steps = run.steps[last]
    u, a = run.u[last][:, order], run.a[last][:, order]
    mean = (run.s * run.u).sum(-1)[last]
    slope = lambda x: float((x[-1] - x[0]) / (steps[-1] - steps[0]))  # noqa: E731
    return slope(mean), slope(a[:, 0] - a[:, 1]), slope(u[:, 0] - u[:, 1])


def starts(n: int, d: int, size: float, count: int, seed: int = 0) -> np.ndarray:
    """`count` values V (count, d, n) of independent normal entries of that size."""
    return size * np.random.default_rng(seed).normal(size=(count, d, n))


def winners(V: np.ndarray, *, steps: int, lr: float, optimizer="adam", loss: str = "logistic") -> np.ndarray:
    """The score of the largest weight after `steps` from each of V (count, d, n), a(0) = 0, β equal in all entries."""
    d, n = V.shape[1:]
    model = value_softmax(loss, np.full(d, d**-0.5))
    optimizer = rule(optimizer) if isinstance(optimizer, str) else optimizer
    runs = (descend(model, v, np.zeros(n), steps=steps, lr=lr, record=[steps], optimizer=optimizer) for v in V)
    return np.array([run.a[0].argmax() for run in runs])


def ranks(V: np.ndarray, won: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each winner's place by u(0), 0 for argmax u(0), and the number of scores above the mean of u(0)."""
    u = V.sum(1)
    ahead = (u > u[np.arange(len(u)), won][:, None]).sum(1)
    return ahead, (u > u.mean(1, keepdims=True)).sum(1)


def rest_departure(run: Trajectory, eps: float, decay: float) -> float:
    """How far the last state is from AdamW's rest, λ x = -g/(|g| + ε) in every entry of V and a, at its largest.

    There decay undoes each step. With ε > 0 gradients must not fall below ε, and polarization ends at a gap that ε
    sets, not at the 2/λ of sign descent.
    """
    V, a = run.V[-1], run.a[-1]
    g = np.concatenate([x.ravel() for x in gradients(run.model, V, a)])
    return float(np.abs(decay * np.concatenate((V.ravel(), a)) + g / (np.abs(g) + eps)).max())


def slow_memory_flow(u, x, *, speed: float = 1.0, loss: str = "linear") -> tuple[np.ndarray, np.ndarray]:
    """Adam for β₂ → 1 and then η → 0: u and a (R, n) at x = ηk (R), from u (n) and a(0) = 0.

    The second moment, bias corrected, is then the mean of the squared gradient since the start, the first is the
    gradient: dθ/dx = -g / √(x⁻¹ ∫₀ˣ g²), free of the learning rate. In it a gradient that grew from nothing like x
    counts √3 times one that was always there. γ = 1 for the linear loss; `speed` is c = ‖β‖₁.
    """
    u = checks.array("u", u, ndim=1)
    x, n = checks.increasing("x", x, least=0), u.size
    checks.choice("loss", loss, ("linear", "logistic"))
    begin = 1e-6  # where the mean square of the gradient since the start is the first gradient's

    def field(x, y):
        u, a, squares = y[:n], y[n : 2 * n], y[2 * n :]
        s = np.exp(a - a.max())
        s /= s.sum()
        gamma = 1.0 if loss == "linear" else 1 / (1 + np.exp(s @ u))
        g = gamma * np.concatenate((s, s * ((u[:, None] - u) @ s)))
        steps = g * np.sqrt(x / np.maximum(squares, 1e-300))
        return np.concatenate((speed * steps[:n], steps[n:], g * g))

    first = np.concatenate((np.full(n, 1 / n), (u - u.mean()) / n))
    first = first if loss == "linear" else first / (1 + np.exp(u.mean()))
    start = np.concatenate((u + speed * begin, begin * np.sign(first[n:]), begin * first**2))
    solution = solve_ivp(
        field, (begin, max(x[-1], 2 * begin)), start, t_eval=np.maximum(x, begin), rtol=1e-8, atol=1e-12
    )
    return solution.y[:n].T, solution.y[n : 2 * n].T


def winner_map(V: np.ndarray, rates, betas1, betas2) -> np.ndarray:
    """Share of the starts V (count, d, n) that argmax u(0) wins after ηk = 4: an axis each for η, β₁ and β₂."""
    shares = np.empty((len(rates), len(betas1), len(betas2)))
    for at in np.ndindex(shares.shape):
        lr, betas = rates[at[0]], (betas1[at[1]], betas2[at[2]])
        won = winners(V, steps=max(200, round(4 / lr)), lr=lr, optimizer=rule("adam", betas=betas))
        shares[at] = (ranks(V, won)[0] == 0).mean()
    return shares
