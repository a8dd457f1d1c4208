"""The 7B models from weights to statistics: resumable, one layer in memory at a time."""

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from src.errors import require
from src.pretrained import statistics
from src.pretrained.cache import MARGIN, Cache
from src.pretrained.gala import GalaConfig, Head, Layer, attention_bias
from src.pretrained.loss import Losses, prompt_losses
from src.pretrained.results import load_arrays, save_arrays
from src.pretrained.statistics import LayerStatistics
from src.pretrained.texts import Prompts

TORCH_TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class Stream:
    """The residual stream (P, T, D) between two layers, in a file, so that memory does not grow with prompts."""

    def __init__(self, path: Path, shape: tuple[int, int, int], dtype: torch.dtype):
        self.path, self.num_prompts, self.shape, self.dtype = path, shape[0], shape[1:], dtype

    def read(self, batch_size: int) -> Iterator[Tensor]:
        """(B, T, D), batch after batch."""
        found, whole = self.path.stat().st_size, self.num_prompts * self.shape[0] * self.shape[1] * self.dtype.itemsize
        require(found == whole, f"{self.path} has {found} bytes, not {whole}: it is damaged; delete its folder")
        size = batch_size * self.shape[0] * self.shape[1] * self.dtype.itemsize
        with self.path.open("rb") as file:
            while content := file.read(size):
                yield torch.frombuffer(bytearray(content), dtype=self.dtype).view(-1, *self.shape)

    def write(self, batches: Iterator[Tensor]) -> None:
        """All batches, or no file."""
        unfinished = self.path.with_name(f"{self.path.name}.part")
        with unfinished.open("wb") as file:
            for batch in batches:
                file.write(memoryview(batch.cpu().contiguous().view(torch.uint8).numpy()))
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(self.path)


@torch.inference_mode()
def analyse_gala(
    cache: Cache, prompts: Prompts, work: Path, batch_size: int, dtype: str, device: str
) -> dict[str, np.ndarray]:
    """Statistics of every layer, all prompts through one layer before the next.

    After each layer its results and the residual stream are in the folder `work`; a restart goes on after the
    last finished layer. Two residual streams are on the disk at a time: ConfigError if it has no room.
    """
    work.mkdir(parents=True, exist_ok=True)
    config, kind = cache.config, TORCH_TYPES[dtype]
    num_prompts, length = prompts.ids.shape
    check_space(work, 2 * num_prompts * length * config.hidden_dim * kind.itemsize)

    def stream(layer: int) -> Stream:
        return Stream(work / f"stream_{layer:02d}", (num_prompts, length, config.hidden_dim), kind)

    def result(layer: int) -> Path:
        return work / f"layer_{layer:02d}.npz"

    first = next((i for i in range(config.num_layers) if not result(i).exists()), config.num_layers)
    if first == 0:
        embedding = cache.outer(kind)["embedding"]
        stream(0).write(embedding[ids] for ids in prompts.ids.split(batch_size))
        del embedding
    bar = tqdm(total=config.num_layers * num_prompts, initial=first * num_prompts, desc="layers", unit="prompt")
    with bar:
        for i in range(first, config.num_layers):
            bar.set_postfix_str(f"layer {i + 1}/{config.num_layers}")
            began = time.perf_counter()
            layer = Layer.from_stored(config, cache.layer(i, kind)).to(device)
            measured = LayerStatistics(num_prompts, config.num_heads, config.hidden_dim, causal=True)
            batches = stream(i).read(batch_size)
            stream(i + 1).write(one_layer(layer, batches, prompts, measured, device, bar))
            save_arrays(result(i), measured.results() | {"seconds": np.float64(time.perf_counter() - began)})
            stream(i).path.unlink()
            del layer
    losses = next_token_losses(config, cache, stream(config.num_layers).read(batch_size), prompts, kind, device)
    layers = [load_arrays(result(i)) for i in range(config.num_layers)]
    same = all(layer.keys() == layers[-1].keys() for layer in layers)
    require(same, f"{work} has layers measured by another version of this program; delete it to start again")
    return statistics.stack_layers(layers) | losses.results() | {"causal": np.bool_(True)}


def one_layer(
    layer: Layer,
    batches: Iterator[Tensor],
    prompts: Prompts,
    measured: LayerStatistics,
    device: str,
    bar: tqdm,
) -> Iterator[Tensor]:
    """The residual stream after the layer, batch by batch, measured on the way."""
    start, seen = 0, torch.arange(1, prompts.ids.shape[1] + 1, device=device)
    for x in batches:
        rows = slice(start, start + len(x))
        ids, valid = prompts.ids[rows].to(device), prompts.valid[rows].to(device)
        x, heads = layer(x.to(device), attention_bias(layer.config, ids))
        measured.add_attention(start, heads, valid, seen.expand_as(ids), prompts.delimiter[rows].to(device))
        measured.add_hidden(start, x, valid)
        yield x
        start = rows.stop
        bar.update(len(x))


def next_token_losses(
    config: GalaConfig, cache: Cache, batches: Iterator[Tensor], prompts: Prompts, dtype: torch.dtype, device: str
) -> Losses:
    """Of each prompt the cross-entropy of its next tokens: whether the weights were read right shows in it."""
    head = Head(config, {name: tensor.to(device) for name, tensor in cache.outer(dtype).items()})
    losses, start = Losses(len(prompts.ids)), 0
    for batch in batches:
        for x in batch:
            length = int(prompts.valid[start].sum())
            logits = head(x[None, :length].to(device))
            rows = slice(start, start + 1)
            ids, valid = (y[rows, :length].to(device) for y in (prompts.ids, prompts.valid))
            losses.add(start, *prompt_losses(logits, ids, valid, prompts.prefix))
            start += 1
    return losses


def check_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    require(
        needed + MARGIN <= free,
        f"{folder} needs {(needed + MARGIN) / 1e9:.1f} GB of disk for the residual stream, and {free / 1e9:.1f} GB are "
        "free; free some, choose another disk with --output-dir, or lower --n-samples",
    )
