"""Any Hugging Face decoder or encoder: its attention and residual stream reduced while the model runs."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from src.errors import ConfigError, require
from src.pretrained import statistics
from src.pretrained.loss import Losses, prompt_losses
from src.pretrained.observed import Anatomy, Observed
from src.pretrained.results import load_arrays, save_arrays
from src.pretrained.statistics import Heads, LayerStatistics
from src.pretrained.texts import Prompts

SECONDS_BETWEEN_SAVES = 30
SAVE_SHARE = 0.01  # of the time, at most, goes into saving what is measured


@dataclass(frozen=True)
class Change:
    """What is changed while a model runs, each of it None for nothing.

    masked: for each prompt (P,) a key that later queries do not see. hidden: (layer, output (B, T, D), valid
    (B, T)) → another output.
    """

    masked: Tensor | None = None
    hidden: Callable[[int, Tensor, Tensor], Tensor] | None = None


class Measurement:
    """All that is known of a model on some prompts; its state is saved in one file, and a restart goes on from it."""

    def __init__(self, prompts: Prompts, anatomy: Anatomy):
        num, self.anatomy = len(prompts.ids), anatomy
        self.prompts, self.done, self.seconds = prompts, 0, 0.0
        self.layers = [LayerStatistics(num, anatomy.num_heads, anatomy.width, anatomy.causal) for _ in anatomy.heads]
        self.losses = Losses(num)

    def parts(self) -> dict[str, dict[str, np.ndarray]]:
        return {str(i): layer.arrays for i, layer in enumerate(self.layers)} | {"losses": self.losses.arrays}

    def store(self, path: Path) -> None:
        arrays = {f"{part}/{name}": array for part, arrays in self.parts().items() for name, array in arrays.items()}
        arrays |= {"done": np.int64(self.done), "seconds": np.float64(self.seconds)}
        save_arrays(path, arrays, compress=False)

    def restore(self, path: Path) -> None:
        """Take up what is saved in `path`, if anything; ConfigError if it is damaged."""
        if not path.exists():
            return
        arrays = load_arrays(path)
        for part, own in self.parts().items():
            for name, array in own.items():
                found = arrays.get(f"{part}/{name}")
                fits = found is not None and found.shape == array.shape
                require(fits, f"{path} is damaged or of another version; delete it to start again")
                own[name] = found
        self.done, self.seconds = int(arrays["done"]), float(arrays["seconds"])

    def results(self) -> dict[str, np.ndarray]:
        """Every layer's results, layers first, and the loss where the model predicts."""
        results = statistics.stack_layers([layer.results() for layer in self.layers])
        if self.anatomy.predicts:
            results |= self.losses.results()
        return results | {"seconds": np.float64(self.seconds), "causal": np.bool_(self.anatomy.causal)}


@torch.inference_mode()
def analyse_model(
    model: torch.nn.Module, prompts: Prompts, work: Path, batch_size: int, device: str
) -> dict[str, np.ndarray]:
    """Statistics of every layer, and the next-token loss of a decoder that has its head. What is measured is saved
    in the folder `work` every half minute; a restart goes on from there."""
    observed = Observed(model)
    anatomy = examine(observed, prompts, device)
    results = measure_all(observed, anatomy, prompts, work / "progress.npz", batch_size, device).results()
    if has_sinks(observed):  # logits that take part in the softmax, and whose share the weights leave out
        results["learned_sink_share"] = 1 - results["row_sum"]
    return results


def examine(observed: Observed, prompts: Prompts, device: str) -> Anatomy:
    """The model's anatomy, by a pass over the longest prompt."""
    lengths = prompts.valid.sum(1)
    longest = int(lengths.argmax())
    with torch.inference_mode():
        return observed.probe(prompts.ids[longest : longest + 1, : int(lengths[longest])].to(device))


def has_sinks(observed: Observed) -> bool:
    return any(
        name.rsplit(".", 1)[-1] in ("sinks", "sink_proj")
        for layer in observed.layers
        for name, _ in layer.named_parameters()
    )


@torch.inference_mode()
def measure_all(
    observed: Observed,
    anatomy: Anatomy,
    prompts: Prompts,
    progress: Path,
    batch_size: int,
    device: str,
    change: Change | None = None,
    name: str = "prompts",
) -> Measurement:
    """All prompts through the model, changed or as it is; saved in the file `progress` now and then."""
    progress.parent.mkdir(parents=True, exist_ok=True)
    measurement, num_prompts = Measurement(prompts, anatomy), len(prompts.ids)
    measurement.restore(progress)
    mark = saved = time.monotonic()
    pause = SECONDS_BETWEEN_SAVES
    with tqdm(total=num_prompts, initial=measurement.done, desc=name, unit="prompt") as bar:
        for start in range(measurement.done, num_prompts, batch_size):
            measure(observed, measurement, start, batch_size, device, change or Change())
            now = time.monotonic()
            measurement.seconds, mark = measurement.seconds + now - mark, now
            bar.update(measurement.done - start)
            if now - saved >= pause and measurement.done < num_prompts:
                measurement.store(progress)
                saved = time.monotonic()
                pause = max(SECONDS_BETWEEN_SAVES, (saved - now) / SAVE_SHARE)
    if num_prompts > batch_size:
        measurement.store(progress)
    return measurement


def measure(
    observed: Observed, measurement: Measurement, start: int, batch_size: int, device: str, change: Change
) -> None:
    """One batch, the prompts from `start` on, through the model and into the measurement."""
    prompts, layers = measurement.prompts, measurement.layers
    rows = slice(start, start + batch_size)
    longest = int(prompts.valid[rows].sum(1).max())
    ids, valid, delimiter = (x[rows, :longest].to(device) for x in (prompts.ids, prompts.valid, prompts.delimiter))

    def on_attention(layer: int, heads: Heads, seen: Tensor | None) -> None:
        if seen is None:  # masks differ between models and layers: a key is seen if any head gives it weight
            seen = (heads.weights.amax(1) > 0).sum(-1)
        layers[layer].add_attention(start, heads, valid, seen, delimiter)

    def on_hidden(layer: int, hidden: Tensor) -> Tensor | None:
        check_finite(hidden, valid, layer, start, observed.kind)
        changed = change.hidden(layer, hidden, valid) if change.hidden else None
        layers[layer].add_hidden(start, hidden if changed is None else changed, valid)
        return changed

    masked = None if change.masked is None else change.masked[rows].to(device)
    output = observed.run(ids, valid, on_attention, on_hidden, masked)
    if measurement.anatomy.predicts:
        measurement.losses.add(start, *prompt_losses(output.logits, ids, valid, prompts.prefix))
    measurement.done = start + len(ids)


def check_finite(hidden: Tensor, valid: Tensor, layer: int, start: int, kind: str) -> None:
    """ConfigError at the first NaN or infinity, with its layer."""
    good = hidden.sum(-1).isfinite() | ~valid  # (B, T)
    if good.all():
        return
    prompt, position = (~good).nonzero()[0].tolist()
    raise ConfigError(
        f"layer {layer} (from 0) of {kind} gives NaN or infinity at token {position} of text {start + prompt}: the "
        "weights are damaged, or the numbers too large for this type; try --dtype float32"
    )
