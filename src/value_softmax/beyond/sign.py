"""Sign descent and sign flow, solved: logistic or linear loss, softmax.

Every column of V moves by the same vector, so gaps of u stay what they were. With δ_i = max u(0) - u_i(0) and
D = Σ s_j δ_j, a_i rises while δ_i < D and falls for ever after, since D never rises. Hence the closed form: score i
turns after k_i steps (at time t_i of the flow), and a_1 - a_i = 2η (k - k_i)₊.
"""

import numpy as np

from src.value_softmax import checks
from src.value_softmax.trajectory import Trajectory


def turning_times(u, a=None) -> np.ndarray:
    """t_i (n) of the sign flow from u (n) and scores a (n), 0 if None: inf for the winner and for its equals.

    From the last to the first by u: e^{2 t_i} = Σ_{j>i} p_j e^{2 t_j}(δ_j - δ_i) / Σ_{j<i} p_j (δ_i - δ_j), where
    p = e^{a(0)}.
    """
    return _turning(u, a, lambda x: x)


def turning_steps(u, lr: float, a=None) -> np.ndarray:
    """k_i (n) of sign descent with learning rate lr, likewise: the number of steps in which score i rises."""
    lr = checks.positive("lr", lr)
    return _turning(u, a, lambda t: np.ceil(t / lr) * lr) / lr


def _turning(u, a, later):
    u = checks.array("u", u, ndim=1)
    a = np.zeros_like(u) if a is None else checks.array("a", a, ndim=1)
    checks.shape("a", a, u.shape, "that of u")
    order = np.argsort(-u, kind="stable")
    delta, log_p, log_t = u[order[0]] - u[order], a[order], np.full(u.size, np.inf)
    times = np.full(u.size, np.inf)
    for i in range(u.size - 1, -1, -1):
        ahead = delta[:i] < delta[i]
        if not ahead.any():
            break
        log_up = np.logaddexp.reduce(log_p[:i][ahead] + np.log(delta[i] - delta[:i][ahead]))
        behind = np.flatnonzero(delta > delta[i])
        if not behind.size:
            log_t[i] = -np.inf
        else:
            log_t[i] = np.logaddexp.reduce((log_p + 2 * times)[behind] + np.log(delta[behind] - delta[i])) - log_up
        times[i] = later(max(log_t[i] / 2, 0.0))
    return times[np.argsort(order)]


def sign_flow(u, t, *, a=None, speed: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """u and a (R, n) of the sign flow at times t (R); `speed` is c = ‖β‖₁."""
    t = checks.increasing("t", t, least=0)[:, None]
    turn = turning_times(u, a)
    a = np.zeros_like(turn) if a is None else np.asarray(a, dtype=float)
    return np.asarray(u, dtype=float) + speed * t, a + np.minimum(t, 2 * turn - t)


def law_departure(run: Trajectory, lr: float) -> float:
    """The largest |a_1 - a_i - 2η (k - k_i)₊| / η of sign descent from a(0) = 0, over records and scores."""
    winner, steps = run.u[0].argmax(), run.steps[:, None]
    law = 2 * lr * np.maximum(steps - turning_steps(run.u[0], lr), 0)
    return float(np.abs(run.a[:, winner, None] - run.a - law).max() / lr)


def column_departure(run: Trajectory, factor: float = 1.0) -> float:
    """|V_i - V_j - factor^k (V_i - V_j)(0)|: 0 where no weight is 0, for any loss; factor 1 - ηλ with decay λ."""
    gaps = run.V - run.V[:, :, :1]
    return float(np.abs(gaps - factor ** run.steps[:, None, None] * gaps[0]).max())


def fall_rates(run: Trajectory, lr: float) -> tuple[float, float]:
    """The falls of ln s a step, over η, in the run's last half: of the outlet, 1 - Σs, and of the runner-up.

    softmax1: 1 and 2; softmax_sink: 2 and 2. Weights are to be above rounding there.
    """
    half = len(run.steps) // 2
    steps = run.steps[half] - run.steps[-1]
    outlet, second = 1 - run.s.sum(-1), np.sort(run.s, axis=-1)[:, -2]
    return tuple(float(np.log(x[-1] / x[half]) / (lr * steps)) for x in (outlet, second))
