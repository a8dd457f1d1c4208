"""A Hugging Face model that shows its attention and its residual stream while it runs, and lets both be changed.

Most models of Transformers compute attention in one function, which is called by name; while a model runs here, a
function that looks on stands under that name, and sees queries, keys, values and the mask. Where a model has a way
of its own, the weights are what its attention module returns.
"""

import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from src.errors import ConfigError, require
from src.pretrained.loading import is_memory_error
from src.pretrained.statistics import Heads
from src.pretrained.texts import one_line

OTHER_TOWERS = re.compile(r"(^|\.)(vision|visual|image|audio|speech|vit|siglip)", re.I)
NO_ATTENTION = re.compile(r"linear|conv|mamba|recurrent|delta|moe$|mlp", re.I)  # in a config's types of layers


@dataclass
class Pass:
    """One forward pass: what to call, and what has been seen.

    on_attention(layer, heads, seen): seen (B, T) is how many keys each query sees, None if unknown.
    on_hidden(layer, output (B, T, D)) may return another output, which takes its place.
    masked (B,): a key of each prompt that later queries do not see, None for none.
    """

    shape: tuple[int, int]
    on_attention: Callable[[int, Heads, Tensor | None], None]
    on_hidden: Callable[[int, Tensor], Tensor | None]
    masked: Tensor | None = None
    shown: set[int] = field(default_factory=set)
    counted: list[tuple[Tensor, Tensor]] = field(default_factory=list)  # masks, and the keys seen by them

    def keys_seen(self, mask: Any) -> Tensor | None:
        """How many keys each query sees (B, T) by an additive mask (B, 1, T, T); None if it is another one."""
        batch, length = self.shape
        if not (isinstance(mask, Tensor) and mask.dim() == 4 and mask.is_floating_point()):
            return None
        if mask.shape[-2:] != (length, length):
            return None
        for known, seen in self.counted:  # layers share a mask or two
            if known is mask:
                return seen
        seen = (mask[:, 0] > torch.finfo(mask.dtype).min / 2).sum(-1).expand(batch, -1)
        self.counted.append((mask, seen))
        return seen


class Observed:
    """Finds the layers as the text model's list of config.num_hidden_layers modules.

    Within a layer, attention is what Transformers' attention function is called for, or what returns (output,
    weights) with weights (B, N, T, T). ConfigError if there are no such layers, or attention is not eager.
    """

    def __init__(self, model: nn.Module):
        config = model.config.get_text_config()
        self.model, self.kind = model, model.config.model_type
        require(
            not getattr(config, "is_encoder_decoder", False),
            f"{self.kind} is an encoder-decoder, which is not supported; choose a decoder or an encoder",
        )
        require(
            config._attn_implementation == "eager",
            f"{self.kind} runs the attention implementation {config._attn_implementation}, which gives no "
            "weights; this needs eager",
        )
        size = config.num_hidden_layers
        lists = [
            module
            for name, module in model.named_modules()
            if isinstance(module, nn.ModuleList) and len(module) == size and not OTHER_TOWERS.search(name)
        ]
        require(bool(lists), f"{self.kind} has no list of {size} layers; not supported")
        self.layers = list(lists[0])
        self.layer_of = {part: i for i, layer in enumerate(self.layers) for part in layer.modules()}
        self.types = getattr(config, "layer_types", None) or getattr(config, "layers_block_type", None)
        self.options = {"use_cache": False} if hasattr(model.config, "use_cache") else {}
        self.current: Pass | None = None

    def run(self, ids: Tensor, valid: Tensor, on_attention, on_hidden, masked: Tensor | None = None) -> Any:
        """The model's output of one `Pass` over ids (B, T), valid (B, T). ConfigError if it does not run."""
        self.current = Pass(tuple(ids.shape), on_attention, on_hidden, masked)
        handles = [part.register_forward_hook(self._attention_hook) for part in self.layer_of]
        handles += [layer.register_forward_hook(self._hidden_hook(i)) for i, layer in enumerate(self.layers)]
        try:
            with self._interface():
                return self.model(input_ids=ids, attention_mask=valid.long(), **self.options)
        except ConfigError:
            raise
        except Exception as error:  # whatever a model raises that wants more than ids, or fewer of them
            if is_memory_error(error):
                raise
            raise ConfigError(
                f"{self.kind} does not run on {ids.shape[1]} token ids alone ({type(error).__name__}: "
                f"{one_line(error)}); choose another model, or a smaller --max-seq-len"
            ) from error
        finally:
            for handle in handles:
                handle.remove()

    @contextmanager
    def _interface(self) -> Iterator[None]:
        """Within, `_attend` stands for eager attention."""
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

        ALL_ATTENTION_FUNCTIONS["eager"] = self._attend
        try:
            yield
        finally:
            del ALL_ATTENTION_FUNCTIONS["eager"]

    def _attend(self, module, query, key, value, attention_mask, *args, **kwargs) -> tuple[Tensor, Tensor]:
        """Eager attention as the module's own file defines it, looked at."""
        plain = sys.modules[type(module).__module__].eager_attention_forward
        now, layer = self.current, self.layer_of.get(module)
        if layer is None or layer in now.shown:
            return plain(module, query, key, value, attention_mask, *args, **kwargs)
        if now.masked is not None:
            attention_mask = self._hide_keys(attention_mask)
        output, weights = plain(module, query, key, value, attention_mask, *args, **kwargs)
        if is_square(weights, now.shape):
            now.shown.add(layer)
            if hasattr(module, "sinks"):
                weights = weights * sink_scale(output, weights, value)[..., None]
            now.on_attention(layer, Heads(weights, key, value), now.keys_seen(attention_mask))
        return output, weights

    def _hide_keys(self, mask: Tensor | None) -> Tensor:
        """The mask (B, 1, T, T) without each prompt's masked key for the queries after it."""
        batch, length = self.current.shape
        fits = isinstance(mask, Tensor) and mask.is_floating_point() and mask.shape[-2:] == (length, length)
        require(fits, f"{self.kind} masks attention in a way of its own: keys can't be masked here")
        later = torch.arange(length, device=mask.device)[:, None] > self.current.masked[:, None, None]  # (B, T, 1)
        hidden = later & (torch.arange(length, device=mask.device) == self.current.masked[:, None, None])
        return mask.expand(batch, -1, -1, -1).masked_fill(hidden[:, None], torch.finfo(mask.dtype).min)

    def _attention_hook(self, module, inputs, output) -> None:
        layer, now = self.layer_of[module], self.current
        weights = output[1] if isinstance(output, tuple) and len(output) > 1 else None
        if layer not in now.shown and is_square(weights, now.shape):
            require(
                now.masked is None, f"{self.kind} computes attention in a way of its own: keys can't be masked here"
            )
            now.shown.add(layer)
            now.on_attention(layer, Heads(weights), None)

    def _hidden_hook(self, layer: int):
        def hook(module, inputs, output):
            hidden = output[0] if isinstance(output, tuple) else output
            is_stream = isinstance(hidden, Tensor) and hidden.shape[:-1] == self.current.shape
            require(
                is_stream,
                f"{self.kind} has several residual streams, or layers that do not give one: "
                f"{tuple(getattr(hidden, 'shape', ()))} for {self.current.shape} tokens; not supported",
            )
            changed = self.current.on_hidden(layer, hidden)
            if changed is None:
                return None
            return (changed, *output[1:]) if isinstance(output, tuple) else changed

        return hook

    def probe(self, ids: Tensor) -> "Anatomy":
        """Heads of each layer, width, and whether the model is causal, by a pass over `ids` (1, T).

        Layers without attention have no heads. ConfigError if a layer that should have it shows none, or the layers
        do not pass one residual stream on.
        """
        ids = ids.expand(1, -1) if ids.shape[1] > 1 else ids.expand(1, 2)
        found = self._look(ids)
        if not any(found.heads):  # some models make weights only when asked
            self.options["output_attentions"] = True
            found = self._look(ids)
        missing = [i for i, heads in enumerate(found.heads) if not heads and self._should_attend(i)]
        require(not missing, f"layers {missing} of {self.kind} gave no attention weights; not supported")
        require(any(found.heads), f"no layer of {self.kind} has attention; choose a model that has")
        kinds = sorted({heads for heads in found.heads if heads})
        require(len(kinds) == 1, f"the layers of {self.kind} differ in heads: {found.heads}; not supported")
        return found

    def _look(self, ids: Tensor) -> "Anatomy":
        heads, ahead, states, fits = [0] * len(self.layers), [], {}, []

        def on_attention(layer: int, shown: Heads, seen: Tensor | None) -> None:
            heads[layer] = shown.weights.shape[1]
            ahead.append(bool(shown.weights.triu(1).any()))

        def on_hidden(layer: int, hidden: Tensor) -> None:
            states[layer] = hidden

        def before(layer: int):
            def hook(module, args, kwargs):
                state = args[0] if args else kwargs.get("hidden_states")
                if layer - 1 in states and isinstance(state, Tensor):
                    fits.append(torch.equal(state, states[layer - 1]))

            return hook

        handles = [layer.register_forward_pre_hook(before(i), with_kwargs=True) for i, layer in enumerate(self.layers)]
        try:
            output = self.run(ids, torch.ones_like(ids), on_attention, on_hidden)
        finally:
            for handle in handles:
                handle.remove()
        require(
            all(fits) and len(states) == len(self.layers),
            f"the layers of {self.kind} do not hand one residual stream to the next; not supported",
        )
        causal = not any(ahead)
        return Anatomy(heads, states[0].shape[-1], causal, causal and getattr(output, "logits", None) is not None)

    def _should_attend(self, layer: int) -> bool:
        """Whether this layer is one of attention, by the config's types or the names of its parts."""
        if self.types is not None:
            return not NO_ATTENTION.search(str(self.types[layer]))
        names = [type(part).__name__ for part in self.layers[layer].modules()]
        return any("Attention" in name and not NO_ATTENTION.search(name) for name in names)


@dataclass(frozen=True)
class Anatomy:
    """heads of each layer (0: no attention); width of the stream; causal; predicts: whether it gives logits."""

    heads: list[int]
    width: int
    causal: bool
    predicts: bool

    @property
    def num_heads(self) -> int:
        return max(self.heads)


def is_square(weights: Any, shape: tuple[int, int]) -> bool:
    """Whether these are attention weights (B, N, T, T)."""
    batch, length = shape
    is_weights = isinstance(weights, Tensor) and weights.dim() == 4
    return is_weights and (weights.shape[0], *weights.shape[2:]) == (batch, length, length)


def sink_scale(output: Tensor, weights: Tensor, values: Tensor) -> Tensor:
    """What a learned sink multiplies the rows of `weights` (B, N, T, T) with in the layer's output, (B, N, T).

    A sink in the softmax leaves rows that sum to less than 1, and the output is their mix of `values`
    (B, M, T, H): 1. A sink that scales the output (B, T, N, H) leaves rows that sum to 1: the factor between
    output and mix.
    """
    values = values.repeat_interleave(weights.shape[1] // values.shape[1], 1)
    mixed = (weights.to(values.dtype) @ values).float()
    output = output.reshape(mixed.shape[0], mixed.shape[2], mixed.shape[1], -1).transpose(1, 2).float()
    return (output * mixed).sum(-1) / mixed.square().sum(-1).clamp(min=1e-30)
