"""The reader and the cache: local, by http, through the bucket's interface; damage, interruptions, restarts."""

import json
import os
import shutil
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from bucket_server import Server

from src.errors import ConfigError
from src.pretrained import cache as cache_module
from src.pretrained import checkpoint as checkpoint_module
from src.pretrained.cache import JOURNAL, open_cache
from src.pretrained.checkpoint import TransferError, open_checkpoint, slabs

DATA = Path(__file__).parent / "data"
NORM = "gda/model/decoder/output_norm/scale"
GATE = "gda/model/decoder/transformer/repeat/layer/feed_forward/linear1_0/weight"


@pytest.fixture
def copy(tmp_path):
    """A checkpoint of our own, to damage."""
    return shutil.copytree(DATA / "softmax" / "step_00250000", tmp_path / "bucket" / "step")


@pytest.fixture
def server(copy):
    with Server(copy.parent) as server:
        yield server
        server.shutdown()


@pytest.fixture
def prompt(monkeypatch):
    """What failed is asked for again at once, and as often as ever."""
    for limits in (checkpoint_module.QUICK, checkpoint_module.PATIENT):
        monkeypatch.setitem(limits, "initial_delay", "1ms")


@pytest.fixture
def impatient(monkeypatch):
    for name in ("QUICK", "PATIENT"):
        limits = {"max_retries": 2, "initial_delay": "1ms", "max_delay": "2ms"}
        monkeypatch.setattr(checkpoint_module, name, limits)


def weights(cache) -> dict[str, torch.Tensor]:
    layers = [cache.layer(i, torch.float32) for i in range(cache.config.num_layers)]
    return cache.outer(torch.float32) | {f"{i}/{k}": v for i, layer in enumerate(layers) for k, v in layer.items()}


def assert_same(one, other):
    one, other = weights(one), weights(other)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    checkpoint = open_checkpoint(str(DATA / "softmax" / "step_00250000"), "softmax")
    return open_cache(checkpoint, tmp_path_factory.mktemp("local"), "float32")


def test_cache_has_the_arrays(local):
    """Against tensorstore's own reading of whole arrays."""
    checkpoint = open_checkpoint(str(DATA / "softmax" / "step_00250000"), "softmax")
    for name in ("qkv", "out", "gate", "down", "key_norm"):
        whole = checkpoint.stores[name].read().result()
        for i in range(3):
            np.testing.assert_array_equal(local.layer(i, torch.float32)[name], whole[i])


def test_bfloat16_cache(local, checkpoint, tmp_path):
    small = open_cache(open_checkpoint(local_url(), "softmax"), tmp_path, "bfloat16")
    for name, tensor in small.layer(1, torch.bfloat16).items():
        assert torch.equal(tensor, local.layer(1, torch.bfloat16)[name])
    size = sum(path.stat().st_size for path in small.folder.glob("layer*"))
    assert size < 0.55 * sum(path.stat().st_size for path in local.folder.glob("layer*"))


def local_url() -> str:
    return str(DATA / "softmax" / "step_00250000")


def test_by_http_with_interruptions(server, local, tmp_path, prompt):
    """Cut answers are asked for again, and every chunk is fetched once."""
    server.interrupt.update({"index": 1, "0.1.0": 2, "0.0.1.0.0": 1})
    cache = open_cache(open_checkpoint(f"{server.url}/step", "softmax"), tmp_path, "float32")
    assert_same(cache, local)
    assert sum(server.interrupt.values()) <= 0
    chunks = [path for path in server.served if path[-1].isdigit()]
    assert len(chunks) == sum(1 for path in (server.root / "step/gda/model").rglob("[0-9]*"))
    assert all(server.served[path] == 1 for path in chunks)


def test_through_the_bucket_interface(server, local, tmp_path, monkeypatch):
    """gs:// without credentials, at a stand-in server."""
    monkeypatch.setenv("TENSORSTORE_GCS_HTTP_URL", server.url)
    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS", raising=False)
    monkeypatch.setenv("GCE_METADATA_ROOT", "127.0.0.1:9")
    (server.root / "bucket-name").symlink_to(server.root)
    cache = open_cache(open_checkpoint("gs://bucket-name/step", "softmax"), tmp_path, "float32")
    assert_same(cache, local)


def test_broken_off_and_resumed(server, local, tmp_path, impatient):
    """After the server goes away nothing is taken for whole, and what was read is not read again."""
    for allowed in (26, 34, 45):
        server.allowed = allowed
        with pytest.raises((TransferError, ConfigError), match="step"):
            open_cache(open_checkpoint(f"{server.url}/step", "softmax"), tmp_path, "float32")
        assert not list(tmp_path.rglob("*.safetensors"))
        assert not list(tmp_path.rglob("cache.json"))
    journals = list(tmp_path.rglob(JOURNAL))
    kept = journals[0].read_text().count("\n")
    assert kept > 0
    with journals[0].open("a") as file:
        file.write("gate 0:3 0:1")  # half a line, as a kill leaves it
    server.allowed, before = None, server.served.copy()
    assert_same(open_cache(open_checkpoint(f"{server.url}/step", "softmax"), tmp_path, "float32"), local)
    fetched = sum((server.served - before)[path] for path in server.served if path[-1].isdigit())
    assert fetched < len(list((server.root / "step/gda/model").rglob("[0-9]*")))


def test_killed_at_every_slab(copy, local, tmp_path, monkeypatch):
    """However often it is stopped, each slab is written once."""
    monkeypatch.setattr(checkpoint_module, "SLAB_BYTES", 2**12)
    real, written = cache_module.write_slab, []

    def stops(folder, files, name, slab, array):
        real(folder, files, name, slab, array)
        written.append((name, str(slab)))
        if len(written) % 3 == 0:
            raise KeyboardInterrupt

    monkeypatch.setattr(cache_module, "write_slab", stops)
    checkpoint, cache = open_checkpoint(str(copy), "softmax"), None
    while cache is None:
        try:
            cache = open_cache(checkpoint, tmp_path / "cache", "float32")
        except KeyboardInterrupt:
            continue
    assert_same(cache, local)
    repeated = len(written) - len(set(written))
    assert repeated <= len(written) // 3  # at most the slab that was being written at each stop


def test_files_lost_with_their_journal_kept(copy, local, tmp_path, impatient):
    """A journal without its files is not believed."""
    checkpoint = open_checkpoint(str(copy), "softmax")
    (copy / GATE / "0.1.0").rename(copy / "aside")
    with pytest.raises(TransferError, match="linear1_0"):
        open_cache(checkpoint, tmp_path / "cache", "float32")
    (copy / "aside").rename(copy / GATE / "0.1.0")
    next((tmp_path / "cache").rglob("layer_01*.part")).unlink()
    assert_same(open_cache(checkpoint, tmp_path / "cache", "float32"), local)


def test_missing_array(server, copy, impatient):
    shutil.rmtree(copy / NORM)
    for url in (str(copy), f"{server.url}/step"):
        with pytest.raises(ConfigError, match="output_norm/scale is listed in the index but missing"):
            open_checkpoint(url, "softmax")


def test_wrong_shape(server, copy):
    described = json.loads((copy / NORM / ".zarray").read_text())
    (copy / NORM / ".zarray").write_text(json.dumps(described | {"shape": [31]}))
    with pytest.raises(ConfigError, match=r"output_norm/scale .* shape \(31,\) .* index says \(32,\)"):
        open_checkpoint(f"{server.url}/step", "softmax")


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ('"(64, 32)"', '"(65, 32)"', r"token_emb/weight the shape \(65, 32\), not the \(64, 32\)"),
        ('"float32", "shape": "(64, 32)"', '"bfloat16", "shape": "(64, 32)"', "type bfloat16, not float32"),
        ("model/decoder/output_norm/scale", "model/decoder/norm/scale", "misses decoder/output_norm/scale"),
        ("[[", "[", "no checkpoint index"),
    ],
)
def test_wrong_index(copy, old, new, sentence):
    text = (copy / "index").read_text()
    assert old in text
    (copy / "index").write_text(text.replace(old, new))
    with pytest.raises(ConfigError, match=sentence):
        open_checkpoint(str(copy), "softmax")


def test_other_sizes_need_a_config(copy):
    (copy / "config.json").unlink()
    with pytest.raises(ConfigError, match="needs a config.json"):
        open_checkpoint(str(copy), "softmax")


def test_wrong_model(copy):
    with pytest.raises(ConfigError, match="model=sigmoid, but .* says softmax"):
        open_checkpoint(str(copy), "sigmoid")


def test_no_checkpoint(tmp_path, server, impatient):
    for url in (str(tmp_path), f"{server.url}/nothing"):
        with pytest.raises(ConfigError, match="no checkpoint at"):
            open_checkpoint(url, "softmax")
    with pytest.raises(ConfigError, match="gsutil -m cp -r"):
        open_checkpoint("http://127.0.0.1:9/step", "softmax")


@pytest.mark.parametrize("damage", ["truncated", "missing"])
def test_damaged_chunk(server, copy, tmp_path, impatient, damage):
    """Neither is read as zeros."""
    chunk = copy / GATE / "0.1.0"
    content = chunk.read_bytes()
    chunk.unlink()
    if damage == "truncated":
        chunk.write_bytes(content[:-100])
    for url in (str(copy), f"{server.url}/step"):
        with pytest.raises(TransferError, match="linear1_0/weight can't be read"):
            open_cache(open_checkpoint(url, "softmax"), tmp_path / "cache", "float32")
        assert not list((tmp_path / "cache").rglob("*.safetensors"))


def test_corrupt_cache(copy, tmp_path):
    cache = open_cache(open_checkpoint(str(copy), "softmax"), tmp_path / "cache", "float32")
    path = cache.folder / "layer_01.safetensors"
    content = bytearray(path.read_bytes())
    content[-7] ^= 1
    path.write_bytes(content)
    cache.layer(0, torch.float32)
    with pytest.raises(ConfigError, match=r"layer_01.safetensors is damaged .* delete .*softmax"):
        cache.layer(1, torch.float32)


def test_no_disk_space(copy, tmp_path, monkeypatch):
    monkeypatch.setattr(cache_module.shutil, "disk_usage", lambda path: types.SimpleNamespace(free=10**6))
    with pytest.raises(ConfigError, match="GB of disk for the weights, and 0.0 GB are free"):
        open_cache(open_checkpoint(str(copy), "softmax"), tmp_path / "cache", "float32")


def test_broken_credentials(tmp_path, monkeypatch):
    (tmp_path / "broken.json").write_text("{not json")
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "broken.json"))
    with pytest.raises(ConfigError, match="unset GOOGLE_APPLICATION_CREDENTIALS .* --checkpoint https://storage"):
        open_checkpoint("gs://bucket/step", "softmax")


@pytest.mark.parametrize(
    ("shape", "chunks"),
    [((3, 16, 10), (3, 4, 10)), ((3, 10, 16), (1, 3, 5)), ((5,), (5,)), ((2, 3, 8, 4), (2, 1, 3, 2))],
)
@pytest.mark.parametrize("limit", [1, 200, 10**6])
def test_slabs_tile(shape, chunks, limit, monkeypatch):
    """Every entry once, in whole chunks, within the limit or one chunk."""
    monkeypatch.setattr(checkpoint_module, "SLAB_BYTES", limit)
    count = np.zeros(shape, int)
    for slab in slabs(shape, chunks, 4):
        count[slab] += 1
        starts = [axis.start % chunk for axis, chunk in zip(slab, chunks, strict=True)]
        assert starts == [0] * len(shape)
        assert count[slab].size * 4 <= max(limit, 4 * np.prod(chunks))
    assert (count == 1).all()


def test_fingerprint_sees_what_links_point_to(tmp_path):
    """A checkpoint whose arrays are linked from elsewhere is another one when they change."""
    copy = shutil.copytree(DATA / "softmax" / "step_00250000", tmp_path / "step")
    (copy / "gda" / "model").rename(tmp_path / "arrays")
    (copy / "gda" / "model").symlink_to(tmp_path / "arrays")
    before = open_checkpoint(str(copy), "softmax").fingerprint
    assert open_checkpoint(str(copy), "softmax").fingerprint == before
    os.utime(next(path for path in (tmp_path / "arrays").rglob("[0-9]*") if path.is_file()), (1, 1))
    assert open_checkpoint(str(copy), "softmax").fingerprint != before
