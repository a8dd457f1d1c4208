"""What analyses leave behind: result files, what is unfinished, and who is at it."""

import hashlib
import importlib.metadata
import json
import os
import platform
import re
import shutil
import sys
import time
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from src.errors import ConfigError, require
from src.pretrained.gala import KNOWN
from src.pretrained.locks import locked

PACKAGES = ("torch", "numpy", "transformers", "gguf", "tensorstore", "sentencepiece")
DAMAGED = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error)
FREE_BYTES = 2**26  # that an output folder has free at least


@dataclass(frozen=True)
class Analysis:
    """A finished analysis: arrays by name, layers × heads or layers first, and what is known about them."""

    arrays: dict[str, np.ndarray]
    about: dict[str, Any]

    @property
    def title(self) -> str:
        return self.about["title"]

    @property
    def heads(self) -> np.ndarray:
        """Which layers have attention, (L,) bool."""
        return ~np.isnan(self.arrays["row_sum"]).all(1)


@dataclass(frozen=True)
class Place:
    """Where an analysis is kept: results in `folder`/`stem`.npz and .json, what is unfinished in work."""

    folder: Path
    stem: str

    @classmethod
    def of(cls, folder: Path, title: str, identity: dict[str, Any]) -> "Place":
        """Named by the model and a hash of everything that decides the numbers."""
        digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
        return cls(folder, f"{re.sub('[^A-Za-z0-9_.+-]', '_', title)}-{digest[:8]}")

    @property
    def results(self) -> tuple[Path, Path]:
        return self.folder / f"{self.stem}.npz", self.folder / f"{self.stem}.json"

    @property
    def work(self) -> Path:
        return self.folder / f"{self.stem}.unfinished"

    def is_finished(self) -> bool:
        return all(path.exists() for path in self.results)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Within, no other process is at this analysis: one that comes later waits."""
        path = self.folder / f"{self.stem}.lock"
        with locked(path, f"another process is at the analysis {self.stem}"):
            try:
                yield
            finally:
                if self.is_finished():  # and who waits will find it so
                    path.unlink(missing_ok=True)

    def save(self, arrays: dict[str, np.ndarray], about: dict[str, Any]) -> Analysis:
        """Write the results, the JSON last, and remove what was unfinished."""
        arrays_path, about_path = self.results
        save_arrays(arrays_path, arrays)
        write_atomically(about_path, json.dumps(about, indent=1).encode())
        shutil.rmtree(self.work, ignore_errors=True)
        return Analysis(arrays, about)


def check_folder(folder: Path) -> None:
    """Make the folder; ConfigError if it can't be made or written to."""
    probe = folder / f".{os.getpid()}.part"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(bytes(2**16))
        probe.unlink()
    except OSError as error:
        with suppress(OSError):
            probe.unlink()
        raise ConfigError(
            f"output_dir={folder} can't be written to ({error.strerror}); choose another with --output-dir"
        ) from error
    free = shutil.disk_usage(folder).free
    require(
        free > FREE_BYTES,
        f"output_dir={folder} has {free / 1e6:.0f} MB of disk left, and needs {FREE_BYTES / 1e6:.0f} MB; free some or "
        "choose another with --output-dir",
    )


def load(path: Path) -> Analysis:
    """The analysis whose JSON file is `path`; ConfigError if the two files are none, or damaged."""
    try:
        about = json.loads(path.read_text())
        analysis = Analysis(load_arrays(path.with_suffix(".npz")), about)
        analysis.about["title"], analysis.about["finished"], analysis.arrays["row_sum"]
    except (*DAMAGED, TypeError) as error:
        raise ConfigError(f"{path} is no analysis of pretrained.py, or its .npz is damaged ({error!r:.100})") from error
    return analysis


def load_all(*folders: Path | str) -> list[Analysis]:
    """The analyses of these folders, by title; what is none is named and left out.

    The newest of each title and model takes the place of older ones; where two models have one title, each is
    called by the start of its weights' hash too.
    """
    found = []
    for path in sorted(path for folder in folders for path in Path(folder).glob("[!.]*.json")):
        try:
            found.append(load(path))
        except ConfigError as error:
            print(f"left out: {error}", file=sys.stderr)
    found.sort(key=lambda analysis: analysis.about["finished"])
    newest = {(analysis.title, analysis.about.get("weights")): analysis for analysis in found}
    titles = [title for title, _ in newest]
    for (title, weights), analysis in newest.items():
        if titles.count(title) > 1:
            analysis.about["title"] = f"{title} ({str(weights)[:6]})"
    return sorted(newest.values(), key=lambda analysis: analysis.title)


def missing_commands(found: list[Analysis]) -> list[str]:
    """The commands for the analyses of Figure 7 that are not among those found."""
    titles = [analysis.title for analysis in found]
    command = "uv run python pretrained.py --model {} --n-samples 1000"
    return [command.format(model) for model in KNOWN if model not in titles]


def load_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz file; ConfigError if it is damaged."""
    try:
        with np.load(path) as arrays:
            return dict(arrays)
    except DAMAGED as error:
        raise ConfigError(
            f"{path} is damaged ({' '.join(str(error).split()):.100}); delete it to start again"
        ) from error


def save_arrays(path: Path, arrays: dict[str, np.ndarray], compress: bool = True) -> None:
    """An .npz file that is there whole or not at all."""
    unfinished = path.with_name(f"{path.name}.part")
    with unfinished.open("wb") as file:
        (np.savez_compressed if compress else np.savez)(file, **arrays)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)


def write_atomically(path: Path, content: bytes) -> None:
    unfinished = path.with_name(f"{path.name}.part")
    unfinished.write_bytes(content)
    unfinished.replace(path)


def versions() -> dict[str, str]:
    """Of the packages that decide the numbers, those that are installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def trust(seconds: float, device: str) -> dict[str, Any]:
    """When and by what an analysis was made."""
    return {
        "seconds": round(seconds, 1),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "device": torch.cuda.get_device_name() if device == "cuda" else device,
        "threads": torch.get_num_threads(),
        "versions": versions(),
    }
