"""Plain NumPy loops against the compiled descent, on the paper's runs; every optimiser and every map; the reduced flow.

    uv run python benchmarks/value_softmax.py

The plain loops make a fiftieth of their steps (200 at least, printed in the table) and are scaled up; the
compiled ones make all of them and record their states, the best of three. Optimisers and maps make 200,000 steps of ten
coordinates under the logistic loss; torch.optim makes 500, gradients being given to it. Half a minute.
"""

from time import perf_counter

import numpy as np
import torch

from src.value_softmax import plain
from src.value_softmax.descent import descend
from src.value_softmax.flow import reduced_flow
from src.value_softmax.kernels import OPTIMIZERS, PAPERS_NORMALISATIONS, TABLE
from src.value_softmax.model import value_softmax
from src.value_softmax.runs import SETUPS, run

FRACTION, LEAST = 1 / 50, 200
STEPS, TORCH_STEPS = 200_000, 500
BETA, V = np.full(10, 0.1**0.5), 0.1 * np.random.default_rng(0).normal(size=(10, 10))
TORCH = {
    "sgd": lambda x: torch.optim.SGD(x, 1e-3),
    "momentum": lambda x: torch.optim.SGD(x, 1e-3, momentum=0.9),
    "adam": lambda x: torch.optim.Adam(x, 1e-3),
    "adamw": lambda x: torch.optim.AdamW(x, 1e-3),
}


def seconds(work) -> float:
    """Wall-clock seconds of a call."""
    start = perf_counter()
    work()
    return perf_counter() - start


def plain_seconds(setup) -> tuple[float, int]:
    """Seconds of the whole run in plain NumPy, scaled up from the steps that were made, and their number."""
    steps = max(LEAST, round(setup.steps * FRACTION))
    return seconds(lambda: plain.descend(setup.model, setup.V, setup.a, steps, setup.lr)) * setup.steps / steps, steps


def step_nanoseconds(normalisation: str = "Softmax", optimizer: str = "sgd", option: float | None = None) -> float:
    """Nanoseconds of a compiled step, the best of three runs without records."""
    model = value_softmax("logistic", BETA, normalisation, option=option)
    a = np.ones(10 + TABLE[normalisation].parameters)
    work = lambda: descend(model, V, a, steps=STEPS, lr=1e-3, record=[STEPS], optimizer=optimizer)  # noqa: E731
    return min(seconds(work) for _ in range(3)) / STEPS * 1e9


def torch_nanoseconds(optimizer: str) -> float:
    """Nanoseconds of a step of torch.optim, without the gradients, which are given; the best of three."""
    x = [torch.tensor(V, requires_grad=True), torch.zeros(10, dtype=torch.float64, requires_grad=True)]
    for parameter in x:
        parameter.grad = torch.full_like(parameter, 1e-3)
    rule = TORCH[optimizer](x)
    return min(seconds(lambda: [rule.step() for _ in range(TORCH_STEPS)]) for _ in range(3)) / TORCH_STEPS * 1e9


def steps_of_optimizers_and_maps() -> None:
    """Print the second table."""
    print("\n| optimiser, or map | ns a step | torch.optim's step alone, ns |\n|---|---|---|")
    for name in OPTIMIZERS:
        reference = f"{torch_nanoseconds(name):,.0f}" if name in TORCH else "none"
        print(f"| {name} | {step_nanoseconds(optimizer=name):.0f} | {reference} |", flush=True)
    for name in TABLE:
        if name not in PAPERS_NORMALISATIONS and name != "entmax":
            print(f"| {name} | {step_nanoseconds(name):.0f} | |", flush=True)
    for alpha in (1.25, 1.5, 2.0):
        print(f"| entmax, α = {alpha} | {step_nanoseconds('entmax', option=alpha):.0f} | |", flush=True)


def main() -> None:
    """Print the tables, as Markdown."""
    first = seconds(lambda: run("square_comparison"))
    print(f"First call in this process, loading or compiling the kernels: {first:.2f} s\n")
    print("| run | steps | plain NumPy, s (steps timed) | compiled, s | ns a step | times faster |")
    print("|---|---|---|---|---|---|")
    totals = np.zeros(2)
    for name, setup in SETUPS.items():
        setups = setup().values()
        slow, timed = map(sum, zip(*map(plain_seconds, setups), strict=True))
        fast = min(seconds(lambda name=name: run(name)) for _ in range(3))
        steps = sum(setup.steps for setup in setups)
        totals += slow, fast
        print(f"| {name} | {steps:,} | {slow:.2f} ({timed:,}) ", end="", flush=True)
        print(f"| {fast:.4f} | {fast / steps * 1e9:.0f} | {slow / fast:.0f} |", flush=True)
    print(f"| all | | {totals[0]:.0f} | {totals[1]:.2f} | | {totals[0] / totals[1]:.0f} |")
    steps_of_optimizers_and_maps()
    u = SETUPS["logistic"]()["Softmax"].V.T @ SETUPS["logistic"]()["Softmax"].model.target
    log_t = np.linspace(0, np.log(1e100), 400)
    far = min(seconds(lambda: reduced_flow("logistic", u, np.zeros(8), log_t)) for _ in range(3))
    print(f"\nReduced flow to t = 1e100, 400 states: {far:.3f} s")


if __name__ == "__main__":
    main()
