"""The published checkpoints: one zarr array for each parameter, all layers stacked, local or remote.

A checkpoint is a folder with `index`, a list of all arrays of the training run, and `gda/model/<path>/`. It is
read with tensorstore from a local folder, from gs://BUCKET/PATH (without credentials, if the bucket is
public) or from http(s)://HOST/PATH.
"""

import hashlib
import itertools
import json
import os
import re
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from src.errors import ConfigError, require
from src.pretrained.gala import IN_LAYER, OUTER, GalaConfig, config_of, stored_shapes

PATHS = OUTER | IN_LAYER
SLAB_BYTES = 256 * 2**20  # read at once, or one chunk where chunks are larger
READS_AHEAD = 2
QUICK = {"max_retries": 2, "initial_delay": "200ms", "max_delay": "2s"}  # to learn soon that there is no network
PATIENT = {"max_retries": 12, "initial_delay": "500ms", "max_delay": "30s"}  # some 4 minutes

Slab = tuple[slice, ...]


class TransferError(Exception):
    """Reading broke off, or what was read is damaged; what came before is kept."""


def is_remote(url: str) -> bool:
    return re.match(r"(gs|https?)://", url) is not None


def store_spec(url: str, path: str = "") -> dict[str, Any]:
    """tensorstore's description of the folder `path` in a checkpoint at `url`."""
    whole = f"{url.rstrip('/')}/{path}".rstrip("/") + "/"
    if whole.startswith("gs://"):
        bucket, _, below = whole.removeprefix("gs://").partition("/")
        return {"driver": "gcs", "bucket": bucket, "path": below}
    if is_remote(whole):
        scheme, _, rest = whole.partition("://")
        host, _, below = rest.partition("/")
        return {"driver": "http", "base_url": f"{scheme}://{host}", "path": f"/{below}"}
    return {"driver": "file", "path": f"{Path(whole).expanduser().resolve()}/"}


def context(retries: dict[str, Any]):
    import tensorstore as ts  # a tenth of a second to import, and not needed by every command

    return ts.Context({"gcs_request_retries": retries, "http_request_retries": retries})


def read_file(url: str, name: str, retries: dict[str, Any] = QUICK) -> bytes | None:
    """A whole file of the folder at `url`, None where there is none; ConfigError where it can't be reached."""
    import tensorstore as ts

    if url.startswith("gs://"):
        check_credentials(url)
    try:
        store = ts.KvStore.open(store_spec(url), context=context(retries)).result()
        read = store.read(name).result()
    except (ValueError, OSError, RuntimeError) as error:
        raise ConfigError(explained(url, error)) from error
    return None if read.state == "missing" else bytes(read.value)


def explained(url: str, error: Exception) -> str:
    """What kept tensorstore from reading `url`, and what to do about it."""
    reason = re.sub(r"\s+", " ", re.sub(r"\[.*", "", str(error))).strip()
    if url.startswith("gs://") and re.search("credential|oauth|token|UNAUTHENTICATED|PERMISSION", str(error), re.I):
        return bad_credentials(url, reason)
    if is_remote(url):
        return (
            f"can't read {url} ({reason:.200}); on a machine with network fetch `index` and `gda/model/` of it, say "
            f"with: gsutil -m cp -r {as_gs(url)}/{{index,gda}} FOLDER, and give the copy as --checkpoint FOLDER"
        )
    return f"can't read {url} ({reason:.200})"


def bad_credentials(url: str, reason: str) -> str:
    https = url.replace("gs://", "https://storage.googleapis.com/")
    return (
        f"this machine's Google credentials are refused or can't be read for {url} ({reason:.200}); unset "
        f"GOOGLE_APPLICATION_CREDENTIALS or repair that file, or leave credentials out with --checkpoint {https}"
    )


def check_credentials(url: str) -> None:
    """ConfigError if the environment names a credentials file that can't be read: tensorstore would fail late."""
    path = os.environ.get("GOOGLE_APPLICATION_CREDENTIALS")
    if path:
        try:
            json.loads(Path(path).read_text())
        except (OSError, ValueError) as error:
            raise ConfigError(bad_credentials(url, f"{path}: {error}")) from error


def as_gs(url: str) -> str:
    return url.replace("https://storage.googleapis.com/", "gs://").rstrip("/")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose arrays are all there with the right shapes and types; made by `open_checkpoint`."""

    url: str
    config: GalaConfig
    stores: dict[str, Any]  # our name → tensorstore array
    fingerprint: str  # of where it is and what it lists: 16 hexadecimal digits

    def slabs(self, name: str) -> list[Slab]:
        """The pieces of an array to read, in order: whole chunks, together at most `SLAB_BYTES` or one chunk."""
        store = self.stores[name]
        return list(slabs(store.shape, store.chunk_layout.read_chunk.shape, store.dtype.numpy_dtype.itemsize))

    def read(self, wanted: list[tuple[str, Slab]]) -> Iterator[tuple[str, Slab, np.ndarray]]:
        """These pieces in order, a few being fetched ahead. Raises TransferError where one can't be had."""
        waiting, ahead = deque(), iter(wanted)

        def fetch_next() -> None:
            for name, slab in itertools.islice(ahead, 1):
                waiting.append((name, slab, self.stores[name][slab].read()))

        for _ in range(READS_AHEAD):
            fetch_next()
        while waiting:
            name, slab, future = waiting.popleft()
            try:
                array = future.result()
            except (ValueError, OSError, RuntimeError) as error:
                reason = re.sub(r"\s+", " ", re.sub(r"\[source.*", "", str(error)))
                raise TransferError(
                    f"{self.url}/gda/model/{PATHS[name]} can't be read ({reason:.300}); what was read before is "
                    "kept: the same command goes on from there, and if it stops here again that file is damaged"
                ) from error
            fetch_next()
            yield name, slab, array


def slabs(shape: tuple[int, ...], chunks: tuple[int, ...], itemsize: int) -> Iterator[Slab]:
    """Boxes of whole chunks that tile `shape`, each at most `SLAB_BYTES` or one chunk; last axes grow first."""
    steps = [min(chunk, size) for chunk, size in zip(chunks, shape, strict=True)]
    for axis in reversed(range(len(shape))):
        fit = SLAB_BYTES // (int(np.prod(steps)) * itemsize)
        steps[axis] = min(shape[axis], steps[axis] * max(fit, 1))
    ranges = [range(0, size, step) for size, step in zip(shape, steps, strict=True)]
    for starts in itertools.product(*ranges):
        yield tuple(
            slice(start, min(start + step, size)) for start, step, size in zip(starts, steps, shape, strict=True)
        )


def open_checkpoint(url: str, model: str) -> Checkpoint:
    """The checkpoint of `model` (softmax or sigmoid) at `url`, checked before anything is read.

    One of other sizes than the 7B's has a config.json (the fields of GalaConfig) beside its index. Raises
    ConfigError if it can't be reached, or an array is missing or not as its index or the sizes say.
    """
    index = read_file(url, "index")
    require(index is not None, f"no checkpoint at {url}: it has no file `index`; give its folder as --checkpoint")
    described = read_file(url, "config.json")
    config = parse_config(described, model) if described else config_of(model)
    listed = parse_index(index, url)
    shapes = stored_shapes(config)
    check_index(listed, shapes, url, sized=described is not None)
    stores = open_arrays(url)
    for name, store in stores.items():
        shape, dtype = listed[PATHS[name]]
        require(
            (tuple(store.shape), store.dtype.name) == (shape, dtype),
            f"{PATHS[name]} at {url} has shape {tuple(store.shape)} and type {store.dtype.name}, but the index says "
            f"{shape} and {dtype}; the copy is damaged: fetch it again",
        )
    return Checkpoint(url, config, stores, fingerprint(url, index, described))


def parse_config(text: bytes, model: str) -> GalaConfig:
    try:
        config = GalaConfig.from_dict(json.loads(text))
    except ValueError as error:
        raise error if isinstance(error, ConfigError) else ConfigError(f"config.json is no JSON: {error}") from error
    require(config.attention == model, f"model={model}, but the checkpoint's config.json says {config.attention}")
    return config


def parse_index(text: bytes, url: str) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and type of each model array that an index lists, by its path below gda/model/."""
    try:
        entries = {path: value for path, value in json.loads(text) if path.startswith("model/")}
        return {
            path.removeprefix("model/"): (
                tuple(int(size) for size in re.findall(r"\d+", value["shape"])),
                value["dtype"],
            )
            for path, value in entries.items()
        }
    except (ValueError, TypeError, KeyError) as error:
        raise ConfigError(f"{url}/index is no checkpoint index: {error!r:.200}") from error


def check_index(listed: dict, shapes: dict[str, tuple[int, ...]], url: str, sized: bool) -> None:
    """ConfigError unless the index lists just the arrays of the model, with these shapes, in float32."""
    for word, paths in {
        "misses": PATHS.values() - listed.keys(),
        "has the unknown": listed.keys() - PATHS.values(),
    }.items():
        require(not paths, f"the index at {url} {word} {', '.join(sorted(paths))}: it is of another architecture")
    hint = "its config.json" if sized else "the 7B model; a model of other sizes needs a config.json beside its index"
    for name, shape in shapes.items():
        found, dtype = listed[PATHS[name]]
        require(found == shape, f"the index at {url} gives {PATHS[name]} the shape {found}, not the {shape} of {hint}")
        require(dtype == "float32", f"the index at {url} gives {PATHS[name]} the type {dtype}, not float32")


def open_arrays(url: str) -> dict[str, Any]:
    """Each array's metadata, all asked for at once; ConfigError for one that isn't there."""
    import tensorstore as ts

    shared = context(PATIENT)
    futures = {
        name: ts.open(
            # a chunk that is missing would be read as zeros by default
            {
                "driver": "zarr",
                "kvstore": store_spec(url, f"gda/model/{path}"),
                "fill_missing_data_reads": False,
            },
            open=True,
            read=True,
            context=shared,
        )
        for name, path in PATHS.items()
    }
    stores = {}
    for name, future in futures.items():
        try:
            stores[name] = future.result()
        except (ValueError, OSError, RuntimeError) as error:
            if "NOT_FOUND" not in str(error):
                raise ConfigError(explained(url, error)) from error
            raise ConfigError(
                f"the array {PATHS[name]} is listed in the index but missing at {url}/gda/model/; fetch it too"
            ) from error
    return stores


def fingerprint(url: str, index: bytes, config: bytes | None) -> str:
    """Of a remote checkpoint by where it is; of a local one also by its files' sizes and times of change."""
    parts = [url.rstrip("/").encode(), index, config or b""]
    if not is_remote(url):
        root = Path(url).expanduser().resolve()
        stats = []
        for folder, _, names in os.walk(root / "gda" / "model", followlinks=True):
            for path in (Path(folder) / name for name in names):
                found = path.stat()  # of what a link points to
                stats.append((str(path.relative_to(root)), found.st_size, found.st_mtime_ns))
        stats.sort()
        parts += [str(root).encode(), json.dumps(stats).encode()]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]
