"""Any Hugging Face decoder or encoder: its attention weights reduced layer by layer while the model runs."""

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from src.config import ConfigError, require
from src.pretrained import statistics
from src.pretrained.analysis import TORCH_TYPES, save_arrays
from src.pretrained.statistics import LayerStatistics
from src.pretrained.texts import Prompts, one_line

SECONDS_BETWEEN_SAVES = 30


@dataclass(frozen=True)
class Loaded:
    """A model with its tokenizer; `revision` is the hub's commit, or the SHA-256 of local weights."""

    model: nn.Module
    tokenizer: Any
    revision: str

    @property
    def max_length(self) -> int | None:
        """Most tokens that the model takes, None if it has no limit."""
        limits = [getattr(self.model.config, "max_position_embeddings", None), self.tokenizer.model_max_length]
        known = [limit for limit in limits if limit is not None and 0 < limit < 10**9]  # "no limit" is 10**30
        return min(known, default=None)


def load_model(name: str, dtype: str, device: str) -> Loaded:
    """The model `name` of the hub, or in a folder of that name; ConfigError where it can't be had."""
    try:
        import transformers
    except ImportError as error:
        raise ConfigError(
            "Hugging Face models need the package transformers; install it with: uv sync --extra hf"
        ) from error
    transformers.utils.logging.disable_progress_bar()
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(name)
        # other implementations return no weights, and say nothing
        model = transformers.AutoModel.from_pretrained(name, attn_implementation="eager", dtype=TORCH_TYPES[dtype])
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ConfigError(
            f"can't load hf:{name} ({one_line(error)}); without network, fetch its files elsewhere with: hf download "
            f"{name} --local-dir FOLDER, and give --model hf:FOLDER"
        ) from error
    return Loaded(model.eval().to(device), tokenizer, revision(name, model))


def revision(name: str, model: nn.Module) -> str:
    folder = Path(name)
    if not folder.is_dir():
        return getattr(model.config, "_commit_hash", None) or "unknown"
    digest = hashlib.sha256()
    for path in sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin")]):
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def encode(tokenizer, texts: Sequence[str], length: int) -> Prompts:
    """Ids with the special tokens that the tokenizer adds by itself, cut to `length`."""
    lists = [tokenizer(text, truncation=True, max_length=length)["input_ids"] for text in texts]
    empty = [i for i, ids in enumerate(lists) if not ids]
    require(not empty, f"text {empty[:1]} (from 0) has no token; remove it")
    return Prompts.from_lists(lists, length, pad=tokenizer.pad_token_id or 0)


class Observed:
    """A model whose layers show their attention weights and outputs while it runs.

    Finds the layers as the model's list of config.num_hidden_layers modules; within a layer, attention is
    what returns (output, weights) with weights (B, N, T, T). Raises ConfigError if a layer has none.
    """

    def __init__(self, model: nn.Module):
        config = model.config.get_text_config()
        require(
            not getattr(config, "is_encoder_decoder", False),
            f"{config.model_type} is an encoder-decoder, which is not supported; choose a decoder or an encoder",
        )
        require(
            config._attn_implementation == "eager",
            f"{config.model_type} runs the attention implementation {config._attn_implementation}, which gives no "
            "weights; this needs eager",
        )
        lists = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == config.num_hidden_layers]
        require(bool(lists), f"{config.model_type} has no list of {config.num_hidden_layers} layers; not supported")
        self.model, self.layers = model, list(lists[0])
        self.has_sink = any(name.rsplit(".", 1)[-1] == "sinks" for name, _ in lists[0].named_parameters())

    def run(self, ids: Tensor, valid: Tensor, on_attention, on_hidden) -> None:
        """One forward pass: on_attention(layer, weights (B, N, T, T)), on_hidden(layer, output (B, T, D))."""
        seen = [False] * len(self.layers)

        def attention_hook(layer: int):
            def hook(module, inputs, output):
                weights = output[1] if isinstance(output, tuple) and len(output) > 1 else None
                shape = (len(ids), ids.shape[1], ids.shape[1])
                is_weights = isinstance(weights, Tensor) and weights.dim() == 4
                if is_weights and weights.shape[:1] + weights.shape[2:] == shape and not seen[layer]:
                    seen[layer] = True
                    on_attention(layer, weights)

            return hook

        def hidden_hook(layer: int):
            def hook(module, inputs, output):
                on_hidden(layer, output[0] if isinstance(output, tuple) else output)

            return hook

        handles = []
        for i, layer in enumerate(self.layers):
            handles += [part.register_forward_hook(attention_hook(i)) for part in layer.modules()]
            handles.append(layer.register_forward_hook(hidden_hook(i)))
        try:
            options = {"use_cache": False} if hasattr(self.model.config, "use_cache") else {}
            self.model(input_ids=ids, attention_mask=valid.long(), **options)
        finally:
            for handle in handles:
                handle.remove()
        missing = [i for i, found in enumerate(seen) if not found]
        require(
            not missing,
            f"layers {missing} of {self.model.config.model_type} gave no attention weights; not supported",
        )

    def probe(self, ids: Tensor) -> tuple[list[int], bool]:
        """Heads of each layer, and whether the model is causal, by a pass over `ids` (1, T)."""
        ids = ids.expand(1, -1) if ids.shape[1] > 1 else ids.expand(1, 2)
        heads, ahead = [0] * len(self.layers), [False] * len(self.layers)

        def on_attention(layer: int, weights: Tensor) -> None:
            heads[layer] = weights.shape[1]
            ahead[layer] = bool(weights.triu(1).any())

        self.run(ids, torch.ones_like(ids), on_attention, lambda layer, hidden: None)
        return heads, not any(ahead)


@torch.inference_mode()
def analyse_model(
    model: nn.Module, prompts: Prompts, work: Path, batch_size: int, device: str
) -> dict[str, np.ndarray]:
    """Statistics of every layer. What is measured is saved in the folder `work` every half minute; a restart
    goes on from there."""
    observed = Observed(model)
    heads, causal = observed.probe(prompts.ids[:1, : int(prompts.valid[0].sum())].to(device))
    require(len(set(heads)) == 1, f"the layers of {model.config.model_type} differ in heads: {heads}; not supported")
    num_prompts = len(prompts.ids)
    layers = [LayerStatistics(num_prompts, n, causal) for n in heads]
    work.mkdir(parents=True, exist_ok=True)
    progress = work / "progress.npz"
    done, seconds = restore(layers, progress)
    began = saved = time.monotonic()
    with tqdm(total=num_prompts, initial=done, desc="prompts", unit="prompt") as bar:
        for start in range(done, num_prompts, batch_size):
            rows = slice(start, start + batch_size)
            longest = int(prompts.valid[rows].sum(1).max())
            ids, valid = (x[rows, :longest].to(device) for x in (prompts.ids, prompts.valid))
            measure(observed, layers, start, ids, valid)
            bar.update(len(ids))
            if time.monotonic() - saved > SECONDS_BETWEEN_SAVES:
                saved = time.monotonic()
                store(layers, progress, start + len(ids), seconds + saved - began)
    results = statistics.stack_layers([layer.results() for layer in layers])
    if observed.has_sink:  # a logit that takes part in the softmax, and whose share the weights leave out
        results["learned_sink_share"] = 1 - results["row_sum"]
    return results | {"seconds": np.float64(seconds + time.monotonic() - began), "causal": np.bool_(causal)}


def measure(observed: Observed, layers: list[LayerStatistics], start: int, ids: Tensor, valid: Tensor) -> None:
    def on_attention(layer: int, weights: Tensor) -> None:
        # masks differ between models and layers (windows): a key is seen if any head gives it weight
        seen = (weights > 0).any(1).sum(-1)  # (B, T)
        layers[layer].add_attention(start, weights, valid, seen)

    def on_hidden(layer: int, hidden: Tensor) -> None:
        layers[layer].add_hidden(start, hidden, valid)

    observed.run(ids, valid, on_attention, on_hidden)


def store(layers: list[LayerStatistics], path: Path, done: int, seconds: float) -> None:
    arrays = {f"{i}/{name}": array for i, layer in enumerate(layers) for name, array in layer.arrays.items()}
    save_arrays(path, arrays | {"done": np.int64(done), "seconds": np.float64(seconds)})


def restore(layers: list[LayerStatistics], path: Path) -> tuple[int, float]:
    """How many prompts are done, and the seconds they took."""
    if not path.exists():
        return 0, 0.0
    try:
        with np.load(path) as arrays:
            for i, layer in enumerate(layers):
                layer.arrays = {name: arrays[f"{i}/{name}"] for name in layer.arrays}
            return int(arrays["done"]), float(arrays["seconds"])
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"{path} is damaged ({one_line(error)}); delete it to start again") from error
