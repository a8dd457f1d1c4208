"""A checkpoint as one safetensors file for each layer, so that a layer can be had without the others.

The checkpoint's arrays hold all layers: reading one layer from it means decompressing them all. Here each
array is read once, slab by slab, and spread over the layers' files. A line in `journal` says that a slab is on
disk; files have their name only when they are whole, and `cache.json`, written last, has their SHA-256.
"""

import hashlib
import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from tqdm import tqdm

from src.errors import ConfigError, require
from src.pretrained.checkpoint import Checkpoint, Slab
from src.pretrained.gala import OUTER, GalaConfig, stored_shapes
from src.pretrained.locks import locked

DTYPES = {"float32": ("F32", np.float32), "bfloat16": ("BF16", np.uint16)}  # safetensors' name, bytes as
MANIFEST, JOURNAL = "cache.json", "journal"
MARGIN = 2**28  # bytes to leave free on the disk


@dataclass(frozen=True)
class Cache:
    """A finished cache, made by `open_cache`."""

    folder: Path
    config: GalaConfig
    sha256: dict[str, str]  # of each file

    @property
    def hash(self) -> str:
        """Of all weights: SHA-256 of the files' SHA-256."""
        return hashlib.sha256("".join(f"{n} {h}\n" for n, h in sorted(self.sha256.items())).encode()).hexdigest()

    def layer(self, layer: int, dtype: torch.dtype) -> dict[str, Tensor]:
        """One layer's arrays, by name, as the checkpoint has them."""
        tensors = self._load(layer_file(layer), dtype)
        return tensors | {"down": tensors["down"].t()}

    def outer(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """The arrays outside the layers."""
        return self._load(layer_file(None), dtype)

    def _load(self, name: str, dtype: torch.dtype) -> dict[str, Tensor]:
        path = self.folder / name
        try:
            if sha256(path) == self.sha256[name]:
                return {key: tensor.to(dtype) for key, tensor in load_file(path).items()}
            reason = "its SHA-256 is not the one in cache.json"
        except (OSError, SafetensorError) as error:
            reason = str(error)
        raise ConfigError(f"the cached file {path} is damaged ({reason}); to rebuild it, delete {self.folder}")


def layer_file(layer: int | None) -> str:
    return "outer.safetensors" if layer is None else f"layer_{layer:02d}.safetensors"


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def open_cache(checkpoint: Checkpoint, root: Path, dtype: str) -> Cache:
    """The cache of `checkpoint` below the folder `root`, made or finished if need be.

    A float32 cache also serves for bfloat16. Raises ConfigError where the disk has too little room or the
    cache is damaged, TransferError where reading breaks off: what was read is kept.
    """
    root.mkdir(parents=True, exist_ok=True)
    folders = {kind: root / f"{checkpoint.config.attention}-{checkpoint.fingerprint}-{kind}" for kind in DTYPES}
    folder = folders["float32"] if (folders["float32"] / MANIFEST).exists() else folders[dtype]
    with locked(folder.with_name(f"{folder.name}.lock"), f"another process is at the weights in {folder}"):
        if not (folder / MANIFEST).exists():
            fill(checkpoint, folder, dtype)
    return Cache(folder, checkpoint.config, read_manifest(folder, checkpoint.config))


def read_manifest(folder: Path, config: GalaConfig) -> dict[str, str]:
    """The SHA-256 of each file of a finished cache; ConfigError if one is missing or all is damaged."""
    try:
        hashes = json.loads((folder / MANIFEST).read_text())["sha256"]
        missing = {layer_file(i) for i in (None, *range(config.num_layers))} - hashes.keys()
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{folder / MANIFEST} is damaged ({error}); to rebuild it, delete {folder}") from error
    require(
        not missing,
        f"{folder / MANIFEST} is damaged (it has no {', '.join(sorted(missing))}); to rebuild it, delete {folder}",
    )
    return hashes


def fill(checkpoint: Checkpoint, folder: Path, dtype: str) -> None:
    """Read what the cache lacks, with a progress bar in bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    files = layouts(checkpoint.config, dtype)
    check_space(folder, files)
    missing = [name for name in files if not (folder / name).exists()]
    made = [allocate(partial(folder / name), files[name]) for name in missing]
    if any(made):
        (folder / JOURNAL).unlink(missing_ok=True)  # what it tells of is not there
    done = read_journal(folder)
    slabs = [(name, slab) for name in checkpoint.stores for slab in checkpoint.slabs(name)]
    wanted = [(name, slab) for name, slab in slabs if line(name, slab) not in done]
    total, left = (sum(num_bytes(slab) for _, slab in part) for part in (slabs, wanted))
    bar = tqdm(total=total, initial=total - left, desc="reading weights", unit="B", unit_scale=True)
    with bar, (folder / JOURNAL).open("a") as journal:
        for name, slab, array in checkpoint.read(wanted):
            bar.set_postfix_str(name, refresh=False)
            write_slab(folder, files, name, slab, array)
            journal.write(line(name, slab))
            journal.flush()
            os.fsync(journal.fileno())
            bar.update(num_bytes(slab))
    finish(checkpoint, folder, files, dtype)


def finish(checkpoint: Checkpoint, folder: Path, files: dict[str, dict], dtype: str) -> None:
    """Give whole files their names, and write the manifest."""
    for name in files:
        if not (folder / name).exists():
            partial(folder / name).replace(folder / name)
    hashes = {name: sha256(folder / name) for name in tqdm(files, desc="checking weights", unit="file")}
    about = {"source": checkpoint.url, "dtype": dtype, "config": asdict(checkpoint.config), "sha256": hashes}
    unfinished = partial(folder / MANIFEST)
    unfinished.write_text(json.dumps(about, indent=1))
    unfinished.replace(folder / MANIFEST)
    (folder / JOURNAL).unlink()


def partial(path: Path) -> Path:
    return path.with_name(f"{path.name}.part")


def layouts(config: GalaConfig, dtype: str) -> dict[str, dict[str, dict]]:
    """Of each file, what its safetensors header says of each tensor.

    `down` is transposed to D × F: as checkpoints are cut along D, a slab is then one run of bytes.
    """
    shapes = stored_shapes(config)
    outer = {name: shapes[name] for name in OUTER}
    layer = {name: shape[1:] for name, shape in shapes.items() if name not in OUTER}
    layer["down"] = layer["down"][::-1]
    files = {layer_file(i): layer for i in range(config.num_layers)} | {layer_file(None): outer}
    return {file: layout(tensors, dtype) for file, tensors in files.items()}


def layout(tensors: dict[str, tuple[int, ...]], dtype: str) -> dict[str, dict]:
    label, numpy_type = DTYPES[dtype]
    header, offset = {}, 0
    for name, shape in tensors.items():
        size = int(np.prod(shape)) * np.dtype(numpy_type).itemsize
        header[name] = {"dtype": label, "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    return header


def header_bytes(layout: dict[str, dict]) -> bytes:
    """The start of a safetensors file: the header's length, and the header as JSON, padded to 8 bytes."""
    text = json.dumps(layout, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def file_size(layout: dict[str, dict]) -> int:
    return len(header_bytes(layout)) + max(entry["data_offsets"][1] for entry in layout.values())


def allocate(path: Path, layout: dict[str, dict]) -> bool:
    """Make a file of the right size with its header, unless there is one; whether it was made."""
    if path.exists() and path.stat().st_size == file_size(layout):
        return False
    with path.open("wb") as file:
        file.write(header_bytes(layout))
        file.truncate(file_size(layout))
    return True


def check_space(folder: Path, files: dict[str, dict]) -> None:
    def on_disk(path: Path) -> int:
        return path.stat().st_blocks * 512 if path.exists() else 0

    written = sum(max(on_disk(folder / name), on_disk(partial(folder / name))) for name in files)
    needed = sum(file_size(layout) for layout in files.values()) - written + MARGIN
    free = shutil.disk_usage(folder).free
    require(
        needed <= free,
        f"{folder} needs {needed / 1e9:.1f} GB of disk for the weights, and {free / 1e9:.1f} GB are free; free some, "
        "choose another disk with --cache-dir, or halve the need with --dtype bfloat16",
    )


def write_slab(folder: Path, files: dict[str, dict], name: str, slab: Slab, array: np.ndarray) -> None:
    """A piece of the checkpoint's array `name` into the files it belongs to, on disk when this returns."""
    if name in OUTER:
        write_piece(folder / layer_file(None), files[layer_file(None)], name, slab, array)
        return
    for layer, piece in zip(range(slab[0].start, slab[0].stop), array, strict=True):
        write_piece(folder / layer_file(layer), files[layer_file(layer)], name, slab[1:], piece)


def write_piece(path: Path, layout: dict[str, dict], name: str, slab: Slab, piece: np.ndarray) -> None:
    entry, start = layout[name], len(header_bytes(layout))
    dtype = next(numpy_type for label, numpy_type in DTYPES.values() if label == entry["dtype"])
    if entry["dtype"] == "BF16":
        piece = torch.from_numpy(piece).bfloat16().view(torch.uint16).numpy()
    if name == "down":
        piece, slab = piece.T, slab[::-1]
    offset = start + entry["data_offsets"][0]
    target = np.memmap(partial(path), dtype, "r+", offset=offset, shape=tuple(entry["shape"]))
    target[slab] = piece
    target.flush()


def line(name: str, slab: Slab) -> str:
    return f"{name} {' '.join(f'{axis.start}:{axis.stop}' for axis in slab)}\n"


def num_bytes(slab: Slab) -> int:
    """In the checkpoint, of float32."""
    return 4 * int(np.prod([axis.stop - axis.start for axis in slab]))


def read_journal(folder: Path) -> set[str]:
    """Lines of slabs that are on disk; half a line, left by a kill, is none."""
    path = folder / JOURNAL
    if not path.exists():
        return set()
    text = path.read_text()
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        path.write_text(whole)
    return set(whole.splitlines(keepends=True))
