"""What is to be done once a GPU is at hand: check, measure, and train the paper's grids, in calls that resume.

python -m benchmarks.gpu check             # stacks on the GPU against single runs on the CPU: minutes
python -m benchmarks.gpu speed             # steps with and without CUDA graphs; then benchmarks/scale.py
python -m benchmarks.gpu grids 9           # goes on with both grids for 9 minutes; again until it says "complete"
python -m benchmarks.gpu grids 9 tf32 2    # the same in TF32, with two processes on the GPU

Needs torch, numpy, PyYAML, safetensors and this checkout. The grids go to logs/gpu_float32.db or logs/gpu_tf32.db;
`uv run python -m src.runs export logs/gpu_float32.db results/NAME.parquet` makes a table of either.
"""

import dataclasses
import multiprocessing
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np
import torch

from benchmarks import scale
from src.config import RunConfig
from src.model.registry import ATTENTION
from src.runs import ROOT, RunLog
from src.tasks import TASKS
from src.training.cores import usable_cores
from src.training.loop import DivergedError, Observer, prepare_process, train, train_stack
from src.training.stacks import make_stacks, members_that_fit
from src.training.sweep import read_sweep
from src.training.workers import Job, run_job

FEW = {"num_train": 10 * 256 - 100, "num_epochs": 2}  # a run of 20 steps, two of which see a smaller batch


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


def check_losses(fields: dict[str, Any]) -> bool:
    """Whether the first losses of a stack on the GPU are those of its members alone, there and on the CPU.

    In float64, where a wrong number is told from rounding, which some functions' training makes 1e5 times as large.
    """
    torch.set_default_dtype(torch.float64)
    members = [RunConfig(**FEW, **fields, seed=seed, lr=lr) for lr in (1e-4, 1e-3) for seed in (0, 1)]
    stacked = first_losses(members, "cuda")[::3]
    worst = [
        np.max(np.abs(stacked / np.concatenate([first_losses([member], device) for member in members[::3]]) - 1))
        for device in ("cuda", "cpu")
    ]
    torch.set_default_dtype(torch.float32)
    good = max(worst) < 1e-7
    failed = "" if good else " FAILED"
    print(f"{worst[0]:.1e} from singles, {worst[1]:.1e} from the CPU's{failed}: {fields}", flush=True)
    return good


def check_final(num_seeds: int = 20) -> bool:
    """Whether final metrics of a stack on the GPU are, on average over seeds, those of single runs on the CPU."""
    one = {"task": "classification", "num_layers": 1, "num_heads": 1}
    members = [RunConfig(**one, seed=seed) for seed in range(num_seeds)]
    stacked, alone = train_stack(members, "cuda")[1], [train(member)[1] for member in members]
    good = True
    for name in ("eval/loss", "eval/acc", "0_0_rel_attn_max", "0_0_attn_entropy", "mixing/0_0/avg_top1_dominance_rate"):
        a, b = (np.array([outcome[name] for outcome in outcomes]) for outcomes in (stacked, alone))
        error = np.std(a - b, ddof=1) / np.sqrt(num_seeds)
        same = abs(np.mean(a - b)) <= 3 * error + 1e-6
        good &= same
        print(f"{name}: {a.mean():.4f} on the GPU, {b.mean():.4f} on the CPU{'' if same else ' FAILED'}", flush=True)
    return good


def check() -> int:
    """Every attention type and shape of both tasks: stacks on the GPU beside single runs there and on the CPU; final
    metrics; a member that diverges; other precisions; how many runs fit. The exit status."""
    variants = [{"task": task, "attention_type": name} for task in TASKS for name in ATTENTION]
    variants += [
        {"aux_loss_weight": aux, "positional_type": positions, "shift_query_token": shift}
        for aux in (0.0, 0.2)
        for positions in ("add", "no")
        for shift in (True, False)
    ]
    sizes = {"task": "classification", "num_layers": 1, "num_heads": 1, "vocab_size": 161}
    variants += [sizes | {"use_mlp": False}, sizes | {"use_layernorm": False}]
    spawning = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
    with ProcessPoolExecutor(usable_cores(), spawning, initializer=prepare_process) as pool:  # the CPU's runs take long
        final = pool.submit(check_final)
        good = all([*pool.map(check_losses, variants), final.result()])
    config = RunConfig(**FEW, task="classification", use_layernorm=False)
    bad = [dataclasses.replace(config, seed=seed, lr=lr) for seed, lr in ((0, 1e-3), (0, 1e30))]
    fine, gone = train_stack(bad, "cuda")[1]
    alone = isinstance(gone, DivergedError) and np.isfinite(fine["eval/loss"])
    print(f"a diverging member ends alone{'' if alone else ' FAILED'}")
    for precision in ("tf32", "bf16"):
        accuracy = train(RunConfig(task="classification", precision=precision), "cuda")[1]["eval/acc"]
        good &= accuracy > 0.95
        print(f"accuracy in {precision}: {accuracy:.3f}")
    print(f"{members_that_fit([RunConfig(seed=seed) for seed in range(2)])} runs of the default induction fit")
    return int(not (good and alone))


def speed() -> None:
    """A step alone and of a stack of 15, kernel by kernel and as a CUDA graph; then benchmarks/scale.py."""
    print("| ms a step | kernel by kernel | as a graph |", "| --- " * 3 + "|", sep="\n")
    for name, fields in scale.SETTINGS.items():
        for size in (1, 15):
            eager, captured = (scale.Steps(RunConfig(**fields), size) for _ in range(2))
            eager.step = eager.step.step
            times = " | ".join(f"{1e3 * duration:.3g}" for duration in scale.in_turns([eager, captured]))
            print(f"| {name}, stack of {size} | {times} |", flush=True)
    scale.main(["steps", "sweeps"])


def grids(minutes: float = 9, precision: str = "float32", workers: int = 1) -> int:
    """Train what the log lacks of both grids, as long as the time allows; the exit status: 1 if runs failed."""
    points = [
        config
        for task in ("classification", "induction")
        for config in read_sweep(ROOT / "sweeps" / f"{task}.yaml", fixed={"precision": precision}).points()
    ]
    job = Job(make_stacks(points, None), ROOT / "logs" / f"gpu_{precision}.db", "cuda", fit=True)
    log, began = RunLog(job.log), time.monotonic()
    hashes = {config.hash for config in points}
    before = len(log.states(settled_since=job.began).keys() & hashes)
    minute = 0
    for _ in run_job(job, workers):
        passed = (time.monotonic() - began) / 60
        if passed > minute:
            states = {h: state for h, state in log.states(settled_since=job.began).items() if h in hashes}
            print(f"{minute} min: {len(states)} of {len(points)} runs", flush=True)
            minute += 1
        if passed > minutes:
            break
    states = {h: state for h, state in log.states(settled_since=job.began).items() if h in hashes}
    failed = sum(state == "failed" for state in states.values())
    complete = len(states) == len(points) and not failed
    print(f"{len(states)} of {len(points)} runs, {len(states) - before} of them now, {failed} failed", end="")
    print(": complete" if complete else "")
    return int(failed > 0)


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
            try:
                sys.exit(grids(*(kind(text) for kind, text in zip(kinds, rest, strict=False))))
            except ValueError as error:  # ConfigError is one
                sys.exit(f"error: {error}")
        case _:
            sys.exit(__doc__)
