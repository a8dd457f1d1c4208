"""The training loop, for any task."""

import dataclasses
import hashlib
import math
import time
from collections.abc import Iterable

import torch
from torch import Generator, Tensor

from src.config import RunConfig, require
from src.cpu import keep_freed_memory
from src.tasks import TASKS
from src.transformer import Transformer


class Observer:
    """Sees a run as it trains: a progress bar, a log, a recorder of attention rows."""

    def on_step(self, step: int, loss: Tensor, model: Transformer) -> None:
        """After training step `step` (1, 2, …), whose loss was `loss`."""

    def on_epoch(self, epoch: int, results: dict[str, float]) -> None:
        """After the evaluation that follows epoch `epoch`; epoch 0 is the start."""

    def on_end(self, state: str, summary: dict[str, float]) -> None:
        """After the run, in whatever state (of the run log) it ended."""


class DivergedError(Exception):
    """The loss became infinite or not a number."""


def stream(config: RunConfig, purpose: str) -> Generator:
    """The random numbers of one purpose of a run: they depend on nothing but its seed and the purpose."""
    digest = hashlib.sha256(f"{purpose} {config.seed}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def build_model(config: RunConfig) -> Transformer:
    """The untrained model of a run."""
    task = TASKS[config.task](config)
    return Transformer(
        task.num_tokens,
        task.num_classes,
        causal=task.causal,
        embed_dim=config.embed_dim,
        num_layers=config.num_layers,
        num_heads=config.num_heads,
        attention_type=config.attention_type,
        positional_type=config.positional_type,
        use_mlp=config.use_mlp,
        use_layernorm=config.use_layernorm,
        generator=stream(config, "initialisation"),
    )


def num_steps(config: RunConfig) -> int:
    """Training steps in a run."""
    return config.num_epochs * math.ceil(config.num_train / config.batch_size)


def estimate_seconds(config: RunConfig, device: str = "cpu") -> float:
    """How long the run takes alone, judged by a few steps and evaluations of it."""

    def seconds(steps: int) -> float:
        began = time.perf_counter()
        train(dataclasses.replace(config, num_epochs=1, num_train=steps * config.batch_size), device)
        return time.perf_counter() - began

    seconds(1)  # the first steps of a process are slow
    few, more = seconds(3), seconds(9)
    step = max(more - few, 0) / 6
    evaluations = max(few - 3 * step, 0)  # the two of those runs, and their final metrics
    return num_steps(config) * step + evaluations * (1 + config.num_epochs) / 2


def choose_device(name: str) -> str:
    """`cpu` or `cuda` for `auto`, `cpu` or `cuda`; ConfigError where there is no such device."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    require(name != "cuda" or torch.cuda.is_available(), "device=cuda needs a CUDA GPU; use --device=cpu here")
    return name


def prepare_process() -> None:
    """One thread for each run, so that results do not depend on how many cores or workers there are."""
    torch.set_num_threads(1)
    keep_freed_memory()


def train(
    config: RunConfig, device: str = "cpu", observers: Iterable[Observer] = ()
) -> tuple[Transformer, dict[str, float]]:
    """Train and evaluate the run; the model and its summary: the last epoch's results and the final metrics.

    Raises DivergedError at the end of the first epoch whose loss is not finite, after telling the observers.
    """
    task = TASKS[config.task](config)
    inputs, targets = (x.to(device) for x in task.sequences(config.num_train, stream(config, "training data")))
    held_out = [x.to(device) for x in task.sequences(config.num_eval, stream(config, "evaluation data"))]
    model = build_model(config).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.lr, fused=True)
    order = stream(config, "order")

    def end_of_epoch(epoch: int, step: int, results: dict[str, float]) -> tuple[dict[str, float], list[Tensor]]:
        evaluated, weights = evaluate(model, task, *held_out)
        results = {"epoch": epoch, "step": step} | results | evaluated
        for observer in observers:
            observer.on_epoch(epoch, results)
        return results, weights

    step = 0
    results, weights = end_of_epoch(0, step, {})
    for epoch in range(1, config.num_epochs + 1):
        total = torch.zeros((), device=device)
        for batch in torch.randperm(config.num_train, generator=order).to(device).split(config.batch_size):
            loss = training_step(model, optimizer, task, inputs[batch], targets[batch], config.precision)
            total += loss * len(batch)
            step += 1
            for observer in observers:
                observer.on_step(step, loss, model)
        results, weights = end_of_epoch(epoch, step, {"train/loss": (total / config.num_train).item()})
        if not math.isfinite(results["train/loss"]):
            raise DivergedError(f"the loss of epoch {epoch} is {results['train/loss']}")
    with torch.no_grad():
        final = task.final_metrics(model, weights, *held_out, stream(config, "label mixing"))
    return model, results | final


def training_step(model, optimizer, task, inputs: Tensor, targets: Tensor, precision: str) -> Tensor:
    """One step of gradient descent on a batch; its loss, detached."""
    with torch.autocast(inputs.device.type, torch.bfloat16, enabled=precision == "bf16"):
        logits, _ = model(inputs, task.read)
    loss = task.loss(logits.float(), targets)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.detach()


@torch.no_grad()
def evaluate(model: Transformer, task, inputs: Tensor, targets: Tensor) -> tuple[dict[str, float], list[Tensor]]:
    """Loss, accuracies and attention entropies in float32, and the attention weights of each layer."""
    logits, weights = model(inputs, task.evaluated)
    results = {"loss": task.loss(logits, targets).item()} | task.accuracies(logits, targets)
    named = {f"eval/{name}": value for name, value in results.items()}
    return named | task.attention_entropies(weights), weights
