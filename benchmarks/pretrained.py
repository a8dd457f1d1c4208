"""Memory and time of the 7B models' layers, on random weights of the true width; what measuring costs elsewhere.

uv run python benchmarks/pretrained.py                       # 2 layers, 8 and 32 prompts of 256 tokens
uv run python benchmarks/pretrained.py --dtype bfloat16
uv run python benchmarks/pretrained.py --overhead            # Hugging Face: against a plain forward pass

Makes 2 of the 32 layers (2.2 GB in the folder of --work, removed at the end), runs the analysis of
pretrained.py on them in a process of its own, and prints its peak memory and the seconds of a layer. Memory
does not depend on the number of layers; that it does not on the number of prompts, two runs show. Time is
proportional to both.

--overhead: a random decoder of SmolLM2's sizes, with its head, in 6 of its 30 layers. Measured are, in turns, the
processor time of a forward pass with output_attentions=True, which keeps all weights, and of a pass that is
measured; and the time of saving what is measured, of one pass of half a minute.
"""

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from src.pretrained.analysis import TORCH_TYPES, analyse_gala
from src.pretrained.cache import MANIFEST, Cache, file_size, header_bytes, layouts, sha256
from src.pretrained.gala import GalaConfig
from src.pretrained.huggingface import Change, Measurement
from src.pretrained.huggingface import measure as measure_batch
from src.pretrained.observed import Observed
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


def overhead(length: int, rounds: int = 7) -> None:
    """Print the ratio of the processor time of a measured and a plain pass over 1,024 tokens, and what saving takes."""
    import transformers

    sizes = {"hidden_size": 576, "num_hidden_layers": 6, "num_attention_heads": 9, "num_key_value_heads": 3}
    config = transformers.LlamaConfig(**sizes, head_dim=64, intermediate_size=1536, vocab_size=49152)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    ids = torch.randint(3, 49152, (1024 // length, length), generator=torch.Generator().manual_seed(0))
    prompts = Prompts(ids, torch.ones_like(ids, dtype=torch.bool))
    observed = Observed(model)
    anatomy = observed.probe(ids[:1])
    measurement = Measurement(prompts, anatomy)

    def plain() -> None:
        model(input_ids=ids, attention_mask=torch.ones_like(ids), output_attentions=True, use_cache=False)

    def measured() -> None:
        measure_batch(observed, measurement, 0, len(ids), "cpu", Change())

    with torch.inference_mode():
        plain(), measured()
        pairs = [(processor_seconds(plain), processor_seconds(measured)) for _ in range(rounds)]
    ratios = sorted(after / before for before, after in pairs)
    with tempfile.TemporaryDirectory() as folder:
        saving = processor_seconds(lambda: measurement.store(Path(folder) / "progress.npz"))
    print(
        f"{len(ids)} x {length} tokens: {ratios[rounds // 2]:.2f} times a plain pass (of {rounds}: {ratios[0]:.2f} to "
        f"{ratios[-1]:.2f}); saving {saving:.3f} s"
    )


def processor_seconds(function: Callable[[], None]) -> float:
    """Of this process, so that what else runs on the machine counts little."""
    began = time.process_time()
    function()
    return time.process_time() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, nargs="+", default=[8, 32])
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--dtype", choices=list(TORCH_TYPES), default="float32")
    parser.add_argument("--work", type=Path, help="folder for the weights (default: a temporary one)")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--overhead", action="store_true", help="what measuring costs in a Hugging Face model")
    options = parser.parse_args()
    if options.overhead:
        torch.set_num_threads(1)  # waiting threads would count as work
        for length in (256, 1024):
            overhead(length)
        return
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
