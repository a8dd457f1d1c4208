"""Memory and time of the 7B models' layers, on random weights of the true width.

uv run python benchmarks/pretrained.py                       # 2 layers, 8 and 32 prompts of 256 tokens
uv run python benchmarks/pretrained.py --dtype bfloat16

Makes 2 of the 32 layers (2.2 GB in the folder of --work, removed at the end), runs the analysis of
pretrained.py on them in a process of its own, and prints its peak memory and the seconds of a layer. Memory
does not depend on the number of layers; that it does not on the number of prompts, two runs show. Time is
proportional to both.
"""

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from src.pretrained.analysis import TORCH_TYPES, analyse_gala
from src.pretrained.cache import MANIFEST, Cache, file_size, header_bytes, layouts, sha256
from src.pretrained.gala import GalaConfig
from src.pretrained.texts import Prompts

CONFIG = GalaConfig(attention="softmax", num_layers=2, sigmoid_bias_seq_len=None)
LAYERS, PROMPTS, LENGTH = 32, 1000, 256  # of the published analysis


def make_cache(folder: Path, dtype: str) -> None:
    """Files as a real checkpoint's cache has them, with normal weights of the scale 1 / sqrt(width)."""
    folder.mkdir(parents=True)
    generator, hashes = torch.Generator().manual_seed(0), {}
    for name, layout in layouts(CONFIG, dtype).items():
        with (folder / name).open("wb") as file:
            file.write(header_bytes(layout))
            for tensor, entry in layout.items():
                scale = 1 if tensor.endswith("norm") else CONFIG.hidden_dim**-0.5
                values = torch.randn(entry["shape"], generator=generator) * scale
                file.write(memoryview(values.to(TORCH_TYPES[dtype]).view(torch.uint8).flatten().numpy()))
        assert (folder / name).stat().st_size == file_size(layout)
        hashes[name] = sha256(folder / name)
    (folder / MANIFEST).write_text(json.dumps(hashes))


def measure(folder: Path, num_prompts: int, batch_size: int, dtype: str) -> None:
    """In a process of its own: run, and print peak memory in GB and the seconds of each layer."""
    ids = torch.randint(5, 32000, (num_prompts, LENGTH), generator=torch.Generator().manual_seed(1))
    cache = Cache(folder, CONFIG, json.loads((folder / MANIFEST).read_text()))
    found = analyse_gala(cache, Prompts(ids, ids > 0), folder / "work", batch_size, dtype, "cpu")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    print(json.dumps({"peak_gb": round(peak, 2), "seconds": np.round(found["seconds"], 1).tolist()}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, nargs="+", default=[8, 32])
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--dtype", choices=list(TORCH_TYPES), default="float32")
    parser.add_argument("--work", type=Path, help="folder for the weights (default: a temporary one)")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        measure(options.measure, options.prompts[0], options.batch_size, options.dtype)
        return
    with tempfile.TemporaryDirectory(dir=options.work) as temporary:
        folder = Path(temporary) / "cache"
        make_cache(folder, options.dtype)
        for num in options.prompts:
            command = [sys.executable, __file__, "--measure", folder, "--prompts", num, "--dtype", options.dtype]
            command += ["--batch-size", options.batch_size]
            run = subprocess.run([str(part) for part in command], stdout=subprocess.PIPE, text=True, check=True)
            found = json.loads(run.stdout)
            hours = np.mean(found["seconds"]) / num * PROMPTS * LAYERS / 3600
            print(
                f"{num} prompts x {LENGTH} tokens, {options.dtype}, {torch.get_num_threads()} threads: "
                f"peak {found['peak_gb']:.2f} GB; a layer {np.mean(found['seconds']):.1f} s; "
                f"{LAYERS} layers of {PROMPTS} prompts: {hours:.1f} h"
            )
            shutil.rmtree(folder / "work")


if __name__ == "__main__":
    main()
