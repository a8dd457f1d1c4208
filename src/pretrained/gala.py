"""The gala architecture: the 7B models with softmax and with sigmoid attention that Figure 7 compares.

A decoder without biases: ALiBi positions, normalised queries and keys, a norm before and after each
sub-layer ("hybridnorm"), SwiGLU, and logits by the embedding matrix. The two models differ in the attention
nonlinearity alone. Dimensions: B prompts, T positions, D width, N heads of H, F feed-forward, V vocabulary.
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from src.errors import ConfigError, require
from src.model.cpu import Linear
from src.pretrained.statistics import Heads


@dataclass(frozen=True, kw_only=True)
class GalaConfig:
    """Sizes of a gala model; the defaults are the 7B models'.

    `sigmoid_bias_seq_len` is S in sigmoid(logits - ln S): the longest sequence in training, a constant of the
    model whatever the length of the text.
    """

    attention: Literal["softmax", "sigmoid"]
    num_layers: int = 32
    hidden_dim: int = 4096
    num_heads: int = 32
    head_dim: int = 128
    ffn_dim: int = 11008
    vocab_size: int = 32768
    max_sequence_length: int = 4096
    sigmoid_bias_seq_len: int | None = 4096
    norm_eps: float = 1e-5
    pad_token_id: int = 0

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "GalaConfig":
        """The config with these fields; others, which describe what never varies, are passed over.

        Raises ConfigError for a missing or wrong field.
        """
        names = [field.name for field in dataclasses.fields(cls)]
        missing = [name for name in names if name not in values]
        require(not missing, f"a model's config.json needs {', '.join(names)}; {', '.join(missing)} is missing")
        config = cls(**{name: values[name] for name in names})
        require(
            config.attention in ("softmax", "sigmoid"),
            f"attention={config.attention} in config.json is not known; it must be softmax or sigmoid",
        )
        for name in names[1:8]:
            value = getattr(config, name)
            require(isinstance(value, int) and value > 0, f"{name}={value} in config.json must be a positive number")
        require(
            config.attention == "softmax" or config.sigmoid_bias_seq_len is not None,
            "config.json with attention=sigmoid needs sigmoid_bias_seq_len, the S of sigmoid(logits - ln S)",
        )
        return config


# What is outside the layers, and what each layer has: our name → path below the checkpoint's gda/model/.
OUTER = {"embedding": "decoder/emb/token_emb/weight", "output_norm": "decoder/output_norm/scale"}
IN_LAYER = {
    "attention_prenorm": "self_attention/prenorm/scale",
    "qkv": "self_attention/attention/i_proj/qkv_proj/weight",
    "query_norm": "self_attention/attention/scale_query/norm/scale",
    "key_norm": "self_attention/attention/scale_key/norm/scale",
    "out": "self_attention/attention/o_proj/weight",
    "attention_postnorm": "self_attention/postnorm/scale",
    "ffn_prenorm": "feed_forward/prenorm/scale",
    "gate": "feed_forward/linear1_0/weight",
    "up": "feed_forward/linear1_1/weight",
    "down": "feed_forward/linear2/weight",
    "ffn_postnorm": "feed_forward/postnorm/scale",
}
IN_LAYER = {name: f"decoder/transformer/repeat/layer/{path}" for name, path in IN_LAYER.items()}


def stored_shapes(config: GalaConfig) -> dict[str, tuple[int, ...]]:
    """Shape in the checkpoint of each array; those of layers have all layers stacked on axis 0.

    Matrices are stored input × output, with one exception: `out` has its output width D first.
    """
    n, d, h, f = config.num_heads, config.hidden_dim, config.head_dim, config.ffn_dim
    layer = {
        "attention_prenorm": (d,),
        "qkv": (3, d, n, h),
        "query_norm": (h,),
        "key_norm": (h,),
        "out": (d, n, h),
        "attention_postnorm": (d,),
        "ffn_prenorm": (d,),
        "gate": (d, f),
        "up": (d, f),
        "down": (f, d),
        "ffn_postnorm": (d,),
    }
    outer = {"embedding": (config.vocab_size, d), "output_norm": (d,)}
    return outer | {name: (config.num_layers, *shape) for name, shape in layer.items()}


def alibi_slopes(num_heads: int) -> Tensor:
    """Slope of each head's linear bias (N,), Press et al. (2022): 2^(-8(i+1)/N) for a power of two N.

    For others: the slopes of the largest power of two P below N, then every second one of those of 2P.
    """
    power = 2 ** int(math.log2(num_heads))

    def geometric(n: int) -> list[float]:
        return [2 ** (-8 * (i + 1) / n) for i in range(n)]

    return torch.tensor(geometric(power) + geometric(2 * power)[::2][: num_heads - power])


def attention_bias(config: GalaConfig, ids: Tensor) -> Tensor:
    """What is added to the attention logits of `ids` (B, T): float32 (B, N, T, T), -inf where nothing is seen.

    ALiBi, the causal mask, -ln S for the sigmoid model, and segments: the pads at the end of a row see each
    other only. A pad id before the row's last token is a token like others.
    """
    positions = torch.arange(ids.shape[1], device=ids.device)
    distance = positions - positions[:, None]  # (T, T): key minus query
    bias = alibi_slopes(config.num_heads).to(ids.device)[:, None, None] * distance
    if config.attention == "sigmoid":
        bias = bias - math.log(config.sigmoid_bias_seq_len)
    text = (ids != config.pad_token_id).flip(1).cumsum(1).flip(1) > 0  # (B, T): up to the last token
    seen = (distance <= 0) & (text[:, :, None] == text[:, None, :])  # (B, T, T)
    return bias.masked_fill(~seen[:, None], -math.inf)


class RMSNorm(nn.Module):
    """x / sqrt(mean(x²) + eps) · scale over the last axis, in the type of x."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.scale, self.eps = nn.Parameter(torch.empty(width)), eps

    def forward(self, x: Tensor) -> Tensor:
        return x * (x.square().mean(-1, keepdim=True) + self.eps).rsqrt() * self.scale


class Layer(nn.Module):
    """One layer. `forward` also returns its attention: the weights are exactly 0 where nothing is seen."""

    def __init__(self, config: GalaConfig):
        super().__init__()
        self.config = config
        n, d, h, f = config.num_heads, config.hidden_dim, config.head_dim, config.ffn_dim
        self.qkv = Linear(d, 3 * n * h, bias=False)
        self.out = Linear(n * h, d, bias=False)
        self.gate, self.up, self.down = Linear(d, f, bias=False), Linear(d, f, bias=False), Linear(f, d, bias=False)
        for name, width in {
            "attention_prenorm": d,
            "query_norm": h,
            "key_norm": h,
            "attention_postnorm": d,
            "ffn_prenorm": d,
            "ffn_postnorm": d,
        }.items():
            setattr(self, name, RMSNorm(width, config.norm_eps))

    @classmethod
    def from_stored(cls, config: GalaConfig, stored: Mapping[str, Tensor]) -> "Layer":
        """The layer with one layer's slices of the checkpoint's arrays (`stored_shapes` without the first axis)."""
        n, d, h = config.num_heads, config.hidden_dim, config.head_dim
        output_by_input = {
            "qkv.weight": stored["qkv"].permute(0, 2, 3, 1).reshape(3 * n * h, d),
            "out.weight": stored["out"].reshape(d, n * h),
            **{f"{name}.weight": stored[name].t().contiguous() for name in ("gate", "up", "down")},
        }
        scales = {f"{name}.scale": tensor for name, tensor in stored.items() if name.endswith("norm")}
        with torch.device("meta"):
            layer = cls(config)
        layer.load_state_dict(output_by_input | scales, assign=True)
        return layer.requires_grad_(False)

    def forward(self, x: Tensor, bias: Tensor) -> tuple[Tensor, Heads]:
        """Residual stream x (B, T, D), bias (B, N, T, T) → the stream after this layer, its heads."""
        attended, heads = self.attention(self.attention_prenorm(x), bias)
        x = x + self.attention_postnorm(attended)
        return x + self.ffn_postnorm(self.feed_forward(self.ffn_prenorm(x))), heads

    def attention(self, u: Tensor, bias: Tensor) -> tuple[Tensor, Heads]:
        b, t, d = u.shape
        n, h = self.config.num_heads, self.config.head_dim
        q, k, v = self.qkv(u.view(b * t, d)).view(b, t, 3, n, h).permute(2, 0, 3, 1, 4)  # each (B, N, T, H)
        q, k = self.query_norm(q) * h**-0.5, self.key_norm(k)
        logits = q @ k.transpose(-1, -2)  # (B, N, T, T)
        logits = (logits + bias.to(logits.dtype)).float()
        # sigmoid weights stay float32 where the rest is bfloat16
        weights = logits.softmax(-1).to(v.dtype) if self.config.attention == "softmax" else logits.sigmoid()
        mixed = (weights @ v.to(weights.dtype)).to(v.dtype)  # (B, N, T, H)
        return self.out(mixed.transpose(1, 2).reshape(b * t, n * h)).view(b, t, d), Heads(weights, k, v)

    def feed_forward(self, u: Tensor) -> Tensor:
        rows = u.view(-1, u.shape[-1])  # (B·T, D)
        return self.down(nn.functional.silu(self.gate(rows)) * self.up(rows)).view(u.shape)


class Head(nn.Module):
    """From the last layer's output to logits, by the embedding matrix."""

    def __init__(self, config: GalaConfig, stored: Mapping[str, Tensor]):
        super().__init__()
        self.embedding = stored["embedding"]  # (V, D)
        self.norm = RMSNorm(config.hidden_dim, config.norm_eps)
        self.norm.load_state_dict({"scale": stored["output_norm"]}, assign=True)
        self.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) → logits (B, T, V)."""
        return nn.functional.linear(self.norm(x), self.embedding)


KNOWN = {
    "softmax": "gala-7B-hybridnorm-alibi-sprp-2024-12-02-1445",
    "sigmoid": "gala-7B-sigmoid-hybridnorm-alibi-sprp-2024-12-03-1002",
}
BUCKET = "https://storage.googleapis.com/axlearn-public"  # gs://axlearn-public needs Google's credentials sane


def checkpoint_url(model: str) -> str:
    """Where the 7B model `softmax` or `sigmoid` is published."""
    return f"{BUCKET}/experiments/{KNOWN[model]}/checkpoints/step_00250000"


def config_of(model: str) -> GalaConfig:
    """The 7B model `softmax` or `sigmoid`; ConfigError for another name."""
    if model not in KNOWN:
        raise ConfigError(
            f"model={model} is not known; choose {', '.join(KNOWN)}, or hf:NAME-OR-PATH for a Hugging Face model"
        )
    return GalaConfig(attention=model, sigmoid_bias_seq_len=4096 if model == "sigmoid" else None)
