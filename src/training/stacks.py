"""Which runs train as one stack, and how many at once."""

import dataclasses
import heapq
import os
from collections.abc import Sequence

import torch

from src.config import STACKABLE, RunConfig
from src.errors import require
from src.tasks import find_task
from src.training.capture import WARM_UP
from src.training.loop import train_stack

MARGIN = 0.9  # of the free memory: the rest is for what the allocator cannot use
CHEAP = 1e8  # multiply-adds of a step, below which a CPU spends much of it on everything else
ON_A_CPU = 8  # runs in a stack of such steps


def make_stacks(points: Sequence[RunConfig], size: int | None) -> list[list[RunConfig]]:
    """The points as stacks of at most `size` runs (None: as many as there are), in the order of their first.

    Runs of one stack differ in STACKABLE fields alone. Those that read fewer positions, as without auxiliary loss,
    stay among themselves: they need about half of the work. Runs of one learning rate are neighbours, so that they
    share a group of the optimiser.
    """
    if size == 1:
        return [[config] for config in points]
    groups: dict[tuple, list[RunConfig]] = {}
    for config in points:
        groups.setdefault(shape_of(config), []).append(config)
    return [
        part
        for group in groups.values()
        for part in batched(sorted(group, key=lambda config: config.lr), size or len(group))
    ]


def shape_of(config: RunConfig) -> tuple:
    """What the runs of a stack have in common."""
    alike = tuple(value for name, value in config.to_dict().items() if name not in STACKABLE)
    return (*alike, positions_read(config))


def positions_read(config: RunConfig) -> range:
    """The positions whose outputs the run's loss is of."""
    return range(config.seq_length)[find_task(config.task)(config).read]


def step_work(config: RunConfig) -> int:
    """About how many multiply-adds the matrix products of the blocks take in a step."""
    positions = (config.num_layers - 1) * config.seq_length + len(positions_read(config))  # the last block: those read
    num_sets = find_task(config.task)(config).num_sets if config.positional_type == "no" else None
    sequences = min(config.batch_size, num_sets or config.batch_size)  # the model runs one for all of a set
    return sequences * positions * config.embed_dim**2 * (12 if config.use_mlp else 4)


def fastest_stacks(points: Sequence[RunConfig], device: str, workers: int) -> list[list[RunConfig]]:
    """The points as stacks of the size that was measured to be fastest: on a GPU as many as there are (it is for
    `members_that_fit` to cut them); on a CPU several where a step is cheap, but so that all workers have something to
    do, else each run alone."""
    if device == "cuda":
        return make_stacks(points, None)
    cheap = [config for config in points if step_work(config) < CHEAP]
    others = [config for config in points if step_work(config) >= CHEAP]
    whole = make_stacks(cheap, None)
    ways = [[part for stack in whole for part in evenly(stack, size)] for size in range(ON_A_CPU, 0, -1)]
    return make_stacks(others, 1) + min(ways, key=lambda stacks: time_of([len(stack) for stack in stacks], workers))


def time_of(sizes: Sequence[int], workers: int) -> int:
    """About how long stacks of these sizes take workers, of whom each takes the largest that is left. What all of a
    stack's cheap steps cost together is about what one run's own work is."""
    busy = [0] * workers
    for size in sorted(sizes, reverse=True):
        heapq.heapreplace(busy, busy[0] + 1 + size)
    return max(busy)


def least_memory(config: RunConfig) -> int:
    """Bytes that a run is certain to take: its blocks' matrices, embedding and head in float32, each with its gradient,
    and the inputs of its sequences."""
    task = find_task(config.task)(config)
    blocks = config.num_layers * config.embed_dim * (12 if config.use_mlp else 4)
    parameters = config.embed_dim * (blocks + (task.num_tokens or 0) // 2 + task.num_classes)
    of_position = 4 * task.num_features if task.num_tokens is None else 8
    return 8 * parameters + (config.num_train + config.num_eval) * task.num_positions * of_position


def check_memory(stack: Sequence[RunConfig], device: str) -> None:
    """ConfigError for a stack that is certain to need more memory than there is; on a GPU, where stacks are cut to
    what fits, for a run that is."""
    config, members = stack[0], 1 if device == "cuda" else len(stack)
    needed = members * least_memory(config)
    there = (
        torch.cuda.mem_get_info()[1] if device == "cuda" else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    )
    sizes = ", ".join(
        f"{name}={getattr(config, name)}" for name in ("embed_dim", "num_layers", "vocab_size", "num_train")
    )
    require(
        needed <= there,
        f"{sizes} need at least {needed / 1e9:,.0f} GB of memory{f' for a stack of {members}' if members > 1 else ''}, "
        f"and there are {there / 1e9:,.0f}; choose smaller ones",
    )


def batched(items: list[RunConfig], size: int) -> list[list[RunConfig]]:
    """The items in parts of `size`, the last perhaps shorter."""
    return [items[i : i + size] for i in range(0, len(items), size)]


def evenly(items: list[RunConfig], size: int) -> list[list[RunConfig]]:
    """The items in as few parts of at most `size` as there can be, of about one length."""
    return batched(items, -(-len(items) // -(-len(items) // size)))


def members_that_fit(stack: Sequence[RunConfig]) -> int:
    """How many runs like those of the stack fit on the GPU, judged by the peak of a short trial with two; 1 where
    even those do not."""
    config, steps = stack[0], WARM_UP + 1  # so that the graph, whose memory is its own, is there too
    num_train = min(steps * config.batch_size, config.num_train)
    epochs = -(-steps // max(1, num_train // config.batch_size))
    trial = [dataclasses.replace(member, num_epochs=epochs, num_train=num_train) for member in stack[:2]]
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_reserved()
    try:
        train_stack(trial, "cuda")
    except torch.OutOfMemoryError:  # another process may have taken the memory meanwhile
        return 1
    each = (torch.cuda.max_memory_reserved() - before) / len(trial)
    data = config.num_train * 2 * config.seq_length * 8  # bytes of a seed's training sequences, int64
    return max(1, int(MARGIN * free / (each + data)))
