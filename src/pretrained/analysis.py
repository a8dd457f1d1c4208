"""An analysis from start to result files: resumable, one layer of a gala model in memory at a time."""

import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from src.config import require
from src.pretrained import statistics
from src.pretrained.cache import MARGIN, Cache
from src.pretrained.gala import KNOWN, GalaConfig, Head, Layer, attention_bias
from src.pretrained.statistics import LayerStatistics
from src.pretrained.texts import Prompts

TORCH_TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Analysis:
    """A finished analysis: arrays by name, layers × heads or layers first, and what is known about them."""

    arrays: dict[str, np.ndarray]
    about: dict[str, Any]

    @property
    def title(self) -> str:
        return self.about["title"]


@dataclass(frozen=True)
class Place:
    """Where an analysis is kept: results in `folder`/`stem`.npz and .json, what is unfinished in work."""

    folder: Path
    stem: str

    @classmethod
    def of(cls, folder: Path, title: str, identity: dict[str, Any]) -> "Place":
        """Named by the model and a hash of everything that decides the numbers."""
        digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
        return cls(folder, f"{title.replace('/', '_')}-{digest[:8]}")

    @property
    def results(self) -> tuple[Path, Path]:
        return self.folder / f"{self.stem}.npz", self.folder / f"{self.stem}.json"

    @property
    def work(self) -> Path:
        return self.folder / f"{self.stem}.unfinished"

    def is_finished(self) -> bool:
        return self.results[1].exists()

    def save(self, arrays: dict[str, np.ndarray], about: dict[str, Any]) -> Analysis:
        """Write the results, the JSON last, and remove what was unfinished."""
        arrays_path, about_path = self.results
        save_arrays(arrays_path, arrays)
        write_atomically(about_path, json.dumps(about, indent=1).encode())
        shutil.rmtree(self.work, ignore_errors=True)
        return Analysis(arrays, about)


def load(path: Path) -> Analysis:
    """The analysis whose JSON file is `path`."""
    with np.load(path.with_suffix(".npz")) as arrays:
        return Analysis(dict(arrays), json.loads(path.read_text()))


def load_all(*folders: Path | str) -> list[Analysis]:
    """The analyses of these folders, the newest of each model, by title."""
    found = [load(path) for folder in folders for path in Path(folder).glob("*.json")]
    found.sort(key=lambda analysis: analysis.about["finished"])
    return sorted({analysis.title: analysis for analysis in found}.values(), key=lambda analysis: analysis.title)


def missing_commands(found: list[Analysis]) -> list[str]:
    """The commands for the analyses of Figure 7 that are not among those found."""
    titles = [analysis.title for analysis in found]
    command = "uv run python pretrained.py --model {} --n-samples 1000"
    return [command.format(model) for model in KNOWN if model not in titles]


def save_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """An .npz file that is there whole or not at all."""
    unfinished = path.with_name(f"{path.name}.part")
    with unfinished.open("wb") as file:
        np.savez_compressed(file, **arrays)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)


def write_atomically(path: Path, content: bytes) -> None:
    unfinished = path.with_name(f"{path.name}.part")
    unfinished.write_bytes(content)
    unfinished.replace(path)


def trust(seconds: float, device: str) -> dict[str, Any]:
    """When and by what an analysis was made."""
    packages = ("torch", "numpy", "transformers", "tensorstore", "sentencepiece")
    versions = {"python": platform.python_version()}
    for name in packages:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "seconds": round(seconds, 1),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "device": torch.cuda.get_device_name() if device == "cuda" else device,
        "threads": torch.get_num_threads(),
        "versions": versions,
    }


class Stream:
    """The residual stream (P, T, D) between two layers, in a file, so that memory does not grow with prompts."""

    def __init__(self, path: Path, length: int, width: int, dtype: torch.dtype):
        self.path, self.shape, self.dtype = path, (length, width), dtype

    def read(self, batch_size: int) -> Iterator[Tensor]:
        """(B, T, D), batch after batch."""
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
        return Stream(work / f"stream_{layer:02d}", length, config.hidden_dim, kind)

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
            measured = LayerStatistics(num_prompts, config.num_heads, causal=True)
            batches = stream(i).read(batch_size)
            stream(i + 1).write(one_layer(layer, batches, prompts, measured, device, bar))
            save_arrays(result(i), measured.results() | {"seconds": np.float64(time.perf_counter() - began)})
            stream(i).path.unlink()
            del layer
    loss = next_token_loss(config, cache, stream(config.num_layers).read(batch_size), prompts, kind, device)
    layers = []
    for i in range(config.num_layers):
        with np.load(result(i)) as arrays:
            layers.append(dict(arrays))
    return statistics.stack_layers(layers) | {"next_token_loss": np.float64(loss)}


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
        x, weights = layer(x.to(device), attention_bias(layer.config, ids))
        measured.add_attention(start, weights, valid, seen.expand_as(ids))
        measured.add_hidden(start, x, valid)
        yield x
        start = rows.stop
        bar.update(len(x))


def next_token_loss(
    config: GalaConfig, cache: Cache, batches: Iterator[Tensor], prompts: Prompts, dtype: torch.dtype, device: str
) -> float:
    """Mean cross-entropy in nats of the next token: whether the weights were read right shows in it."""
    head = Head(config, {name: tensor.to(device) for name, tensor in cache.outer(dtype).items()})
    total, count, start = 0.0, 0, 0
    for batch in batches:
        for x in batch:
            targets = prompts.ids[start, 1:][prompts.valid[start, 1:]].to(device)
            logits = head(x[None, : len(targets)].to(device))[0].float()
            total += torch.nn.functional.cross_entropy(logits, targets, reduction="sum").item()
            count += len(targets)
            start += 1
    return total / count if count else float("nan")


def check_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    require(
        needed + MARGIN <= free,
        f"{folder} needs {(needed + MARGIN) / 1e9:.1f} GB of disk for the residual stream, and {free / 1e9:.1f} GB are "
        "free; free some, choose another disk with --output-dir, or lower --n-samples",
    )
