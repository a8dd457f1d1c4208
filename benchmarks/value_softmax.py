"""Plain NumPy loops against the compiled descent, on the paper's runs, and the reduced flow to t = 1e100.

    uv run python benchmarks/value_softmax.py

The plain loops make a fiftieth of their steps (200 at least, printed in the table) and are scaled up; the
compiled ones make all of them and record their states, the best of three. Twenty seconds.
"""

from time import perf_counter

import numpy as np

from src.value_softmax import plain
from src.value_softmax.flow import reduced_flow
from src.value_softmax.runs import SETUPS, run

FRACTION, LEAST = 1 / 50, 200


def seconds(work) -> float:
    """Wall-clock seconds of a call."""
    start = perf_counter()
    work()
    return perf_counter() - start


def plain_seconds(setup) -> tuple[float, int]:
    """Seconds of the whole run in plain NumPy, scaled up from the steps that were made, and their number."""
    steps = max(LEAST, round(setup.steps * FRACTION))
    return seconds(lambda: plain.descend(setup.model, setup.V, setup.a, steps, setup.lr)) * setup.steps / steps, steps


def main() -> None:
    """Print the table, as Markdown."""
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
    u = SETUPS["logistic"]()["Softmax"].V.T @ SETUPS["logistic"]()["Softmax"].model.target
    log_t = np.linspace(0, np.log(1e100), 400)
    far = min(seconds(lambda: reduced_flow("logistic", u, np.zeros(8), log_t)) for _ in range(3))
    print(f"\nReduced flow to t = 1e100, 400 states: {far:.3f} s")


if __name__ == "__main__":
    main()
