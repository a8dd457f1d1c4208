"""What many runs cost: stacks of several sizes, worker processes, and the log as it grows.

uv run python benchmarks/scale.py              # about six minutes on 2 cores; on a GPU if there is one
uv run python benchmarks/scale.py steps log    # some of: steps, sweeps, log
"""

import dataclasses
import itertools
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from src.config import RunConfig
from src.model.cpu import library
from src.runs import RunLog, load_runs
from src.runs.provenance import device_name
from src.tasks import find_task
from src.training.loop import build_optimizer, build_stack, gradients_of, num_steps, prepare_process, stream
from src.training.stacks import make_stacks
from src.training.workers import Job, run_job

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
SIZES = (1, 5, 15, 30, 60) if CUDA else (1, 2, 4, 8)
ONE = {"task": "classification", "num_layers": 1, "num_heads": 1}
SETTINGS = {
    "induction, aux 0.2": {},
    "induction, aux 0": {"aux_loss_weight": 0.0},
    "classification, 2 layers, 4 heads": {"task": "classification"},
    "classification, 1 layer, 1 head": ONE,
    "classification, 1 layer, 1 head, no MLP, no LayerNorm": ONE | {"use_mlp": False, "use_layernorm": False},
    "classification, 1 layer, 1 head, width 32, batch 64": ONE | {"embed_dim": 32, "batch_size": 64},
}
ROWS = (100, 1_000, 10_000, 100_000)  # of the log


def seconds(function: Callable[[], object]) -> float:
    """Wall-clock time, until a GPU is done too."""
    wait = torch.cuda.synchronize if CUDA else lambda: None
    wait()
    began = time.perf_counter()
    function()
    wait()
    return time.perf_counter() - began


def peak(precision: str) -> float:
    """FLOP/s of a large matrix product, the best of several: on a CPU on one thread, by oneDNN."""
    n = 8192 if CUDA else 1024
    a = torch.randn(n, n, device=DEVICE, dtype=torch.bfloat16 if precision == "bf16" else torch.float32)
    product = a.__matmul__ if CUDA else lambda b: torch.ops.mkldnn._linear_pointwise(b, b, None, "none", [], "")
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    try:
        return 2 * n**3 / min(seconds(lambda: product(a)) for _ in range(10))
    finally:
        torch.set_float32_matmul_precision("highest")


class Steps:
    """Training steps of a stack of runs that differ in seed; each call is one."""

    def __init__(self, config: RunConfig, size: int, device: str = DEVICE, dtype: torch.dtype = torch.float32):
        members = [dataclasses.replace(config, seed=seed) for seed in range(size)]
        task = find_task(config.task)(*members)
        num = 8 * config.batch_size
        self.inputs, self.targets = (x.to(device) for x in task.sequences(num, stream(config, "training data")))
        orders = torch.stack([torch.randperm(num, generator=stream(member, "order")) for member in members])
        self.batches = itertools.cycle(orders.to(device).split(config.batch_size, dim=1))
        self.model = build_stack(members).to(device, dtype)
        self.optimizer = build_optimizer(self.model, members)
        self.gradients = gradients_of(self.model, task, config, device)

    def __call__(self) -> None:
        batch = next(self.batches)
        self.gradients(self.inputs[batch], self.targets[batch])
        self.optimizer.step()


def flop(config: RunConfig) -> int:
    """Floating-point operations of the matrix products in a step of one run, counted; in float64 on the CPU, since
    the counter does not know oneDNN's products."""
    step = Steps(config, 1, "cpu", torch.float64)
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()


def in_turns(steps: list[Callable[[], object]]) -> list[float]:
    """Median time of each of the steps, called in turns; the first turn is left out."""
    turns, calls = (5, 10) if CUDA else (4, 4)
    times = np.array([[[seconds(step) for _ in range(calls)] for step in steps] for _ in range(turns)])
    return np.median(times[1:], axis=(0, 2)).tolist()


def measure_steps() -> str:
    lines = ["| stack | ms a step and run | runs a minute | GFLOP/s | of the large product's |", "| --- " * 5 + "|"]
    for precision in ("float32", "tf32", "bf16") if CUDA else ("float32",):
        most = peak(precision)
        lines.append(f"| large matrix products, {precision} | | | {most / 1e9:.0f} | 100% |")
        for name, fields in SETTINGS.items():
            config = RunConfig(**fields, precision=precision)
            work = flop(dataclasses.replace(config, precision="float32"))
            for size, duration in zip(SIZES, in_turns([Steps(config, size) for size in SIZES]), strict=True):
                each = duration / size
                runs = 60 / (each * num_steps(config))
                shown = f"{1e3 * each:.3g} | {runs:.3g} | {work / each / 1e9:.3g} | {work / each / most:.0%}"
                lines.append(f"| {name}, {precision}, stack of {size} | {shown} |")
    return "\n".join(lines)


def measure_sweeps() -> str:
    """Whole runs as a sweep trains them: through worker processes and the log, their start included."""
    points = [RunConfig(**SETTINGS["classification, 1 layer, 1 head"], seed=seed) for seed in range(24)]
    lines = ["| 24 runs, classification, 1 layer, 1 head | runs a minute |", "| --- | --- |"]
    for workers in (1, 2, 4) if CUDA else (1, os.cpu_count()):
        for size in (1, 4, 12) if CUDA else (1, 4):
            with tempfile.TemporaryDirectory() as folder:
                job = Job(make_stacks(points, size), Path(folder) / "runs.db", DEVICE)
                took = seconds(lambda job=job, workers=workers: list(run_job(job, workers, every=0.1)))
            lines.append(f"| {workers} workers, stacks of {size} | {60 * len(points) / took:.3g} |")
    return "\n".join(lines)


def measure_log() -> str:
    """A run of the size of the paper's: ten epochs, 2 layers of 4 heads."""
    epoch = {f"{i // 4}_{i % 4}_attn_entropy": 0.123456789 for i in range(8)} | {"eval/loss": 0.5, "epoch": 1}
    summary = epoch | {f"{i // 4}_{i % 4}_{name}": 0.123456789 for i in range(8) for name in "abcde"}
    lines = ["| rows in the log | a run's writes | who is settled | load_runs | MB |", "| --- " * 5 + "|"]

    def write(log: RunLog, config: RunConfig) -> None:
        log.start(config, "cpu")
        for number in range(11):
            log.add_epoch(config, number, epoch)
        log.end(config, "finished", summary, 1.0)

    with tempfile.TemporaryDirectory() as folder:
        log, have = RunLog(Path(folder) / "runs.db"), 0
        for rows in ROWS:
            new = [RunConfig(seed=seed) for seed in range(have, rows)]
            fill(log, new[:-100], epoch, summary)
            writing = seconds(lambda log=log, new=new: [write(log, config) for config in new[-100:]]) / 100
            scan = min(seconds(lambda log=log: log.states(settled_since=0)) for _ in range(3))
            loading = seconds(lambda log=log: load_runs(log.path))
            size = log.path.stat().st_size / 1e6
            lines.append(f"| {rows:,} | {1e3 * writing:.2g} ms | {1e3 * scan:.2g} ms | {loading:.2g} s | {size:.3g} |")
            have = rows
    return "\n".join(lines)


def fill(log: RunLog, configs: list[RunConfig], epoch: dict[str, float], summary: dict[str, float]) -> None:
    """Finished runs in one transaction, so that a large log is made in seconds."""
    texts = json.dumps(epoch), json.dumps(summary)
    runs = ((c.hash, json.dumps(c.to_dict()), texts[1], 1.0 + i) for i, c in enumerate(configs))
    log.db.execute("BEGIN")
    insert = "INSERT INTO runs VALUES (?, ?, 'finished', ?, NULL, ?, 1.0, 'none:0', 'cpu', '2', NULL)"
    log.db.executemany(insert, runs)
    log.db.executemany(
        "INSERT INTO history VALUES (?, ?, ?)", ((c.hash, number, texts[0]) for c in configs for number in range(11))
    )
    log.db.execute("COMMIT")


PARTS = {"steps": measure_steps, "sweeps": measure_sweeps, "log": measure_log}


def main(names: list[str]) -> None:
    prepare_process()
    products = "" if CUDA else f", single runs' matrix products by {library()}"
    print(f"{device_name(DEVICE)}{products}, torch {torch.__version__}, one thread a process, medians")
    for name in names or PARTS:
        print(PARTS[name](), end="\n\n", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
