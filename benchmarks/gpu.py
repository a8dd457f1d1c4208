"""What is to be done once a GPU is at hand: check, measure, and train the paper's grids, in calls that resume.

python -m benchmarks.gpu check             # stacks on the GPU against single runs on the CPU: minutes
python -m benchmarks.gpu speed             # eager against torch.compile; then benchmarks/scale.py
python -m benchmarks.gpu grids 9           # goes on with both grids for 9 minutes; again until it says "complete"
python -m benchmarks.gpu grids 9 tf32 2    # the same in TF32, with two processes on the GPU

Needs torch, numpy, PyYAML and this checkout. The grids go to logs/gpu_float32.db or logs/gpu_tf32.db;
`uv run python -m src.runs export logs/gpu_float32.db results/NAME.parquet` makes a table of either.
"""

import dataclasses
import sys
import time

import numpy as np
import torch

from benchmarks import scale
from src.attention import ATTENTION
from src.config import RunConfig
from src.runs import ROOT, RunLog
from src.stacks import make_stacks, members_that_fit
from src.sweep import read_sweep
from src.training import DivergedError, Observer, prepare_process, train, train_stack
from src.workers import Job, run_job

STEPS = 50


class Losses(Observer):
    def __init__(self):
        self.losses = []

    def on_step(self, step, loss, model) -> None:
        self.losses.append(loss.item())


def first_losses(configs: list[RunConfig], device: str) -> np.ndarray:
    """The losses of each run of a stack, (runs, steps)."""
    seen = [Losses() for _ in configs]
    train_stack(configs, device, [[losses] for losses in seen])
    return np.array([losses.losses for losses in seen])


def check() -> int:
    """Every attention type of both tasks: stacks on the GPU beside single runs on the CPU; a member that
    diverges; how many fit. The exit status."""
    failures = 0
    for task in ("induction", "classification"):
        config = RunConfig(task=task, num_train=STEPS * 256, num_epochs=1)
        for name in ATTENTION:
            configs = [
                dataclasses.replace(config, attention_type=name, seed=seed, lr=lr)
                for lr in (1e-4, 1e-3)
                for seed in (0, 1)
            ]
            stacked = first_losses(configs, "cuda")
            alone = np.concatenate([first_losses([member], "cpu") for member in configs[::3]])
            worst = np.max(np.abs(stacked[::3] / alone - 1))
            good = worst < 1e-3  # the devices round differently, and training carries that on
            failures += not good
            print(
                f"{task}, {name}: largest relative difference of {STEPS} losses {worst:.1e} {'' if good else 'FAILED'}"
            )
    bad = [dataclasses.replace(config, seed=seed, lr=lr, use_layernorm=False) for seed, lr in ((0, 1e-3), (0, 1e30))]
    fine, gone = train_stack(bad, "cuda")[1]
    good = isinstance(gone, DivergedError) and np.isfinite(fine["eval/loss"])
    print(f"a diverging member ends alone {'' if good else 'FAILED'}")
    print(f"{members_that_fit([RunConfig(seed=seed) for seed in range(2)])} runs of the default induction fit")
    train(RunConfig(task="classification", precision="tf32", num_train=2560), "cuda")
    return int(failures + (not good) > 0)


def speed() -> None:
    """A step of the grids' stacks of 15, eager and compiled."""
    for name, fields in scale.SETTINGS.items():
        eager, compiled = (scale.Steps(RunConfig(**fields), 15) for _ in range(2))
        compiled.model.compile()
        times = [[1e3 * scale.seconds(step) for _ in range(40)][20:] for step in (eager, compiled)]
        print(
            f"{name}, stack of 15: eager {np.median(times[0]):.3g} ms, compiled {np.median(times[1]):.3g} ms",
            flush=True,
        )
    scale.main([])


def grids(minutes: float = 9, precision: str = "float32", workers: int = 1) -> None:
    """Train what the log lacks of both grids, as long as the time allows."""
    points = [
        config
        for task in ("classification", "induction")
        for config in read_sweep(ROOT / "sweeps" / f"{task}.yaml", fixed={"precision": precision}).points()
    ]
    job = Job(make_stacks(points, None), ROOT / "logs" / f"gpu_{precision}.db", "cuda", fit=True)
    log, deadline = RunLog(job.log), time.monotonic() + 60 * minutes
    hashes = {config.hash for config in points}
    before = len(log.states(settled_since=job.began).keys() & hashes)
    for _ in run_job(job, workers):
        if time.monotonic() > deadline:
            break
    done = len(log.states(settled_since=job.began).keys() & hashes)
    print(f"{done} of {len(points)} runs, {done - before} of them now" + (": complete" if done == len(points) else ""))


if __name__ == "__main__":
    if not torch.cuda.is_available():
        sys.exit("error: benchmarks/gpu.py needs a CUDA GPU; benchmarks/scale.py does without")
    prepare_process()
    match sys.argv[1:]:
        case ["check"]:
            sys.exit(check())
        case ["speed"]:
            speed()
        case ["grids", *rest]:
            kinds = (float, str, int)
            grids(*(kind(text) for kind, text in zip(kinds, rest, strict=False)))
        case _:
            sys.exit(__doc__)
