"""How fast training is: src beside the straightforward implementation of benchmarks/plain.py, in one run.

uv run python benchmarks/training.py        # about four minutes
"""

import time
from collections.abc import Callable, Iterator

import numpy as np
import torch

from benchmarks import plain
from src.config import RunConfig
from src.metrics import NUM_PAIRS
from src.model.cpu import library
from src.model.mitigations import MITIGATIONS
from src.runs.provenance import device_name
from src.tasks import find_task
from src.training.loop import build_model, build_optimizer, gradients, prepare_process, stream

ONE = {"task": "classification", "num_layers": 1, "num_heads": 1}
STEPS = {
    "classification, 1 layer, 1 head, MLP and LayerNorm": ONE,
    "classification, 1 layer, 1 head, neither": ONE | {"use_mlp": False, "use_layernorm": False},
    "classification, 2 layers, 4 heads": {"task": "classification"},
    "induction, aux 0.2": {},
    "induction, aux 0": {"aux_loss_weight": 0.0},
    "induction, aux 0.2, bf16": {"precision": "bf16"},
    "induction, aux 0, bf16": {"aux_loss_weight": 0.0, "precision": "bf16"},
}


def seconds(*functions: Callable[[], object], turns: int, calls: int = 1) -> np.ndarray:
    """Median seconds of a call of each function. They take turns, so that all meet the same machine; after the
    first of the calls in a turn, with a cache that is their own."""
    times = np.empty((turns, len(functions), calls))
    for turn in times:
        for function, row in zip(functions, turn, strict=True):
            for call in range(calls):
                began = time.perf_counter()
                function()
                row[call] = time.perf_counter() - began
    return np.median(times, axis=(0, 2))


def fast_training(config: RunConfig, inputs: torch.Tensor, targets: torch.Tensor) -> Iterator[float]:
    """The counterpart of `plain_training` with the parts of src.training.loop."""
    task, model, order = find_task(config.task)(config), build_model(config), stream(config, "order")
    optimizer = build_optimizer(model, [config])
    while True:
        for batch in torch.randperm(len(inputs), generator=order).split(config.batch_size):
            batch = batch[None]  # a stack of one
            losses = gradients(model, task, config.precision, inputs[batch], targets[batch])
            optimizer.step()
            yield losses.item()


def measure_steps() -> str:
    rows = {}
    for name, fields in STEPS.items():
        config = RunConfig(**fields)
        data = find_task(config.task)(config).sequences(40 * config.batch_size, stream(config, "training data"))
        slow, fast = plain.plain_training(config, *data), fast_training(config, *data)
        times = 1e3 * seconds(lambda it=slow: next(it), lambda it=fast: next(it), turns=7, calls=8)
        rows[name] = [*times, times[0] / times[1]]
    return table(rows, "ms")


def measure_functions(turns: int = 7) -> str:
    """A step of each function made against sinks, in times softmax's, in the same turns."""
    names = ["softmax", *MITIGATIONS]
    columns = []
    for fields in (ONE, {}):
        steps = []
        for name in names:
            config = RunConfig(**fields, attention_type=name)
            data = find_task(config.task)(config).sequences(8 * config.batch_size, stream(config, "training data"))
            steps.append(fast_training(config, *data))
        columns.append(seconds(*((lambda it=it: next(it)) for it in steps), turns=turns, calls=4))
    lines = ["| | classification, 1 layer, 1 head | induction, aux 0.2 |", "| --- | --- | --- |"]
    lines += [f"| {names[0]} | " + " | ".join(f"{1e3 * times[0]:.3g} ms" for times in columns) + " |"]
    for i, name in enumerate(names[1:], start=1):
        lines.append(f"| {name} | " + " | ".join(f"{times[i] / times[0]:.2f} times" for times in columns) + " |")
    return "\n".join(lines)


def measure_around() -> str:
    rows = {}
    config = RunConfig()
    task = find_task(config.task)(config)
    data = stream(config, "training data")
    rows["100,000 induction sequences"] = seconds(
        lambda: plain.plain_induction_sequences(config, 100_000), lambda: task.sequences(100_000, data), turns=3
    )
    inputs, _ = task.sequences(1000, data)
    with torch.no_grad():
        model = build_model(config)
        rows["sink scores of 1,000 sequences"] = seconds(
            lambda: plain.plain_bos_attention(model, inputs),
            lambda: task.final_metrics(model, model(inputs[None])[1], inputs[None], None, [data]),
            turns=3,
        )
        config = RunConfig(task="classification")
        task, model = find_task(config.task)(config), build_model(config)
        inputs, labels = task.sequences(1000, data)
        rows["label mixing, 2 layers × 4 heads × 500 pairs"] = seconds(
            lambda: plain.plain_label_mixing(model, inputs, labels, NUM_PAIRS),
            lambda: task.final_metrics(model, model(inputs[None], task.read)[1], inputs[None], labels[None], [data]),
            turns=1,
        )
    return table({name: [*times, times[0] / times[1]] for name, times in rows.items()}, "s")


def table(rows: dict[str, list[float]], unit: str) -> str:
    """In Markdown."""
    lines = [f"| | straightforward ({unit}) | here ({unit}) | times faster |", "| --- | --- | --- | --- |"]
    return "\n".join(lines + [f"| {name} | {a:.3g} | {b:.3g} | {c:.3g} |" for name, (a, b, c) in rows.items()])


def main() -> None:
    prepare_process()
    print(f"{device_name('cpu')}, matrix products by {library()}, torch {torch.__version__}, one thread, medians")
    for measure in (measure_steps, measure_functions, measure_around):
        print(measure(), end="\n\n", flush=True)


if __name__ == "__main__":
    main()
