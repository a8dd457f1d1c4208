"""What is to be done first where there is a GPU: check that it trains as a CPU does, and measure.

python -m benchmarks.gpu check             # stacks on the GPU against single runs on the CPU: minutes
python -m benchmarks.gpu speed             # steps with and without CUDA graphs; then benchmarks/scale.py

Needs torch, numpy, PyYAML, safetensors and this checkout.
"""

import dataclasses
import multiprocessing
import sys
import warnings
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np
import torch

from benchmarks import scale
from src.config import RunConfig
from src.model.registry import ATTENTION
from src.tasks import TASKS
from src.training.cores import usable_cores
from src.training.loop import DivergedError, Observer, prepare_process, train, train_stack
from src.training.stacks import members_that_fit

FEW = {"num_train": 10 * 256 - 100, "num_epochs": 2, "batch_size": 256}  # 20 steps, two of which see a smaller batch


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
    warnings.filterwarnings("error", "training goes on step by step")
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
    warnings.filterwarnings("error", "training goes on step by step")
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
            eager.gradients = eager.gradients.gradients
            times = " | ".join(f"{1e3 * duration:.3g}" for duration in scale.in_turns([eager, captured]))
            print(f"| {name}, stack of {size} | {times} |", flush=True)
    scale.main(["steps", "sweeps"])


if __name__ == "__main__":
    if not torch.cuda.is_available():
        sys.exit("error: benchmarks/gpu.py needs a CUDA GPU; benchmarks/scale.py does without")
    prepare_process()
    match sys.argv[1:]:
        case ["check"]:
            sys.exit(check())
        case ["speed"]:
            speed()
        case _:
            sys.exit(__doc__)
