"""Descent on the value-softmax model under five optimisers, compiled, with states recorded at chosen steps."""

import numpy as np
from tqdm import tqdm

from src.value_softmax import checks, kernels
from src.value_softmax.kernels import OPTIMIZERS, Model, Rule
from src.value_softmax.model import check_state, parameters
from src.value_softmax.trajectory import Trajectory

# Entries of V visited between two looks at the progress bar and at Ctrl-C: about a tenth of a second.
SLICE = 30_000_000


class Diverged(ArithmeticError):
    """Descent met a gradient that is not finite; `trajectory` holds the states recorded before it."""

    def __init__(self, message: str, trajectory: Trajectory):
        super().__init__(message)
        self.trajectory = trajectory


def log_spaced(steps: int, records: int) -> np.ndarray:
    """0, and at most `records` of the steps 1 … `steps`, evenly spaced in log(step) where they can be."""
    steps, records = checks.count("steps", steps), checks.count("records", records)
    return np.unique(np.r_[0, np.rint(np.geomspace(1, steps, records)).astype(np.int64), steps])


def rule(
    optimizer: str = "sgd", *, momentum: float = 0.9, betas=(0.9, 0.999), eps: float = 1e-8, decay: float | None = None
) -> Rule:
    """An optimiser for `descend`, on the full batch. Its updates of x by the gradient g are PyTorch's.

    "sgd"       x -= lr g, gradient descent
    "momentum"  m = μ m + g, x -= lr m
    "sign"      x -= lr sign(g)
    "adam"      m = β₁ m + (1-β₁) g, v = β₂ v + (1-β₂) g², x -= lr m/(1-β₁^k) / (√(v/(1-β₂^k)) + ε)
    "adamw"     the same with decay 0.01, where none is given

    `decay` λ is decoupled: each step first multiplies x by 1 - lr λ. (PyTorch's SGD adds λ x to the gradient instead:
    the same without momentum, another thing with it.) Adam with decay is AdamW. With eps 0, a coordinate whose gradient
    never was other than 0 stays.

    Raises ValueError for an unknown name, β or μ outside [0, 1), ε < 0 and a decay < 0.
    """
    checks.choice("optimizer", optimizer, OPTIMIZERS)
    if decay is None:
        decay = 0.01 if optimizer == "adamw" else 0.0
    if optimizer == "adam" and decay != 0:
        raise ValueError(f"decay is {decay!r}: Adam has none here, choose adamw, which decouples it")
    if np.shape(betas) != (2,):
        raise ValueError(f"betas is {betas!r}: give two numbers, such as (0.9, 0.999)")
    beta1, beta2 = (checks.within(f"betas[{i}]", beta, 0, 1, open_above=True) for i, beta in enumerate(betas))
    momentum = checks.within("momentum", momentum, 0, 1, open_above=True)
    eps, decay = (checks.within(*x, 0, np.inf, open_above=True) for x in (("eps", eps), ("decay", decay)))
    first = momentum if optimizer == "momentum" else beta1
    return Rule(OPTIMIZERS.index(optimizer), first, beta2, eps, decay)


def descend(model: Model, V, a, *, steps: int, lr: float, record=None, optimizer: Rule | str = "sgd") -> Trajectory:
    """`steps` steps of full-batch descent from values V (d, n) and scores a (n) or (T, n), parameters behind them.

    `optimizer` is a name, or a `rule` with constants of your own. `record` lists the steps after which the state is
    kept, 0 being the start: increasing, such as
    `log_spaced(steps, 1000)`, the default, or `range(steps + 1)` for all. A run of some seconds shows a
    progress bar; Ctrl-C stops it within a fraction of a second.

    Raises ValueError for input that does not fit, and Diverged, which holds the record so far, at a state with
    a gradient that is not finite.
    """
    optimizer = optimizer if isinstance(optimizer, Rule) else rule(optimizer)
    V, A = check_state(model, V, a)
    steps, lr = checks.count("steps", steps), checks.positive("lr", lr)
    record = log_spaced(steps, 1000) if record is None else _record_steps(record, steps)
    V_record, A_record = np.empty((record.size, *V.shape)), np.empty((record.size, *A.shape))

    def trajectory(states: int) -> Trajectory:
        scores = A_record[:states].reshape(states, *np.shape(a))
        return Trajectory(model, record[:states] * lr, V_record[:states], scores, record[:states])

    work, memory = kernels.workspace(*V.shape, len(A), parameters(model)), kernels.moments(V, A)
    length, written = max(1, SLICE // (V.size * len(A))), 0
    with tqdm(total=steps, unit="step", unit_scale=True, delay=3, leave=False) as bar:
        for start in range(0, steps, length):
            stop = min(start + length, steps)
            written, done = kernels.descend(
                model, optimizer, V, A, lr, start, stop, record, written, V_record, A_record, work, memory
            )
            if done < stop:
                raise Diverged(
                    f"the gradient after step {done + 1} is not finite: lower the learning rate from {lr}, "
                    f"or look at the {written} states before in this error's `trajectory`",
                    trajectory(written),
                )
            bar.update(stop - start)
    return trajectory(written)


def _record_steps(record, steps: int) -> np.ndarray:
    """The steps to record, as int64; ValueError unless whole, increasing and within 0 … `steps`."""
    result = checks.increasing("record", record, least=0)
    if result[-1] > steps:
        raise ValueError(f"record ends at step {result[-1]:.0f}: the run has only {steps}, leave later ones out")
    if (result != np.rint(result)).any():
        raise ValueError("record holds a fraction of a step: give whole numbers")
    return result.astype(np.int64)
