"""The same models and metrics written in the most straightforward way: every position passes every layer, each
batch is put together by a DataLoader, metrics look at one sequence at a time.

Tests hold src against it, and benchmarks/training.py measures src against it. Parameters have the names that
they have in src.model.transformer, so that one model's state dict loads into the other.
"""

import random

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, elu
from torch.utils.data import DataLoader, TensorDataset

from src.config import RunConfig
from src.model.mitigations import MITIGATIONS
from src.tasks import find_task


def mlp(dim: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))


class Own(nn.Module):
    """Numbers that a head has of its own."""

    def __init__(self, *shape: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(shape))


def entmax(z: Tensor, visible: Tensor, alpha: float) -> Tensor:
    """α-entmax of the visible scores of each row: try every support size, the scores in descending order."""
    z = ((alpha - 1) * z).masked_fill(~visible, float("-inf"))
    w = torch.zeros_like(z)
    for place in torch.cartesian_prod(*(torch.arange(n) for n in z.shape[:-1])).tolist():
        row = z[tuple(place)]
        for size in range(1, int(row.isfinite().sum()) + 1):
            top = row.topk(size).values
            if alpha == 2:
                tau = (top.sum() - 1) / size
            else:
                spread = (top - top.mean()).square().mean()
                tau = top.mean() - (1 / size - spread).clamp(min=0).sqrt()
            left = (row - tau).clamp(min=0) ** (1 / (alpha - 1))
            if int((left > 0).sum()) == size:
                w[tuple(place)] = left
    return w


class PlainAttention(nn.Module):
    def __init__(self, config: RunConfig):
        super().__init__()
        C = config.embed_dim
        self.kind, self.num_heads = config.attention_type, config.num_heads
        self.query, self.key, self.value, self.output = (nn.Linear(C, C) for _ in range(4))
        if self.kind.startswith("mlp"):
            self.feature_map = mlp(C // config.num_heads)
        H, D = config.num_heads, C // config.num_heads
        names = {"softmax_sink": "sink", "ssmax": "scale"}
        self.numbers = nn.ParameterDict({names[self.kind]: torch.zeros(H)} if self.kind in names else {})
        if self.kind in ("key_bias", "kv_bias"):
            self.extra_key = Own(H, D)
        if self.kind == "kv_bias":
            self.extra_value = Own(H, D)
        if self.kind == "value_gated":
            self.value_gate = nn.ModuleDict({"direction": Own(H, D), "bias": Own(H, 1)})
        if self.kind in ("gated_head", "gated_element"):
            self.output_gate = nn.Linear(C, H if self.kind == "gated_head" else C)

    def made_against_sinks(self, z: Tensor, q: Tensor, visible: Tensor) -> tuple[Tensor, Tensor | None]:
        """Weights of scores z (B, H, T, T), zero or not where they see nothing; and the weight of one more key."""
        count, exp = visible.sum(dim=1), torch.exp(z) * visible
        if self.kind == "softmax1":
            return exp / (1 + exp.sum(dim=3, keepdim=True)), None
        if self.kind == "softmax_sink":
            outlet = torch.exp(self.numbers["sink"])[:, None, None]
            return exp / (outlet + exp.sum(dim=3, keepdim=True)), None
        if self.kind == "softmax_clipped":
            low = -min(0.03, 0.5 / z.shape[-1])
            return ((1 - low) * exp / exp.sum(dim=3, keepdim=True) + low).clamp(0, 1), None
        if self.kind == "softpick":
            above = (torch.exp(z) - 1) * visible
            return above.relu() / (above.abs().sum(dim=3, keepdim=True) + 1e-8), None
        if self.kind in ("entmax15", "sparsemax"):
            return entmax(z, visible, 1.5 if self.kind == "entmax15" else 2), None
        if self.kind == "relu_mean":
            return z.relu() / count[:, None], None
        if self.kind == "sigmoid_bias":
            return torch.sigmoid(z - torch.log(count)[:, None]), None
        if self.kind == "ssmax":
            z = z * self.numbers["scale"][:, None, None] * torch.log(count)[:, None]
        exp = torch.exp(z) * visible
        total = exp.sum(dim=3, keepdim=True)
        if self.kind not in ("key_bias", "kv_bias"):
            return exp / total, None
        extra = torch.exp((q * self.extra_key.weight[:, None]).sum(dim=3, keepdim=True) / q.shape[-1] ** 0.5)
        return exp / (total + extra), extra / (total + extra)

    def forward(self, x: Tensor, visible: Tensor) -> tuple[Tensor, Tensor]:
        B, T, C = x.shape
        H, D = self.num_heads, C // self.num_heads
        q, k, v = (f(x).view(B, T, H, D).transpose(1, 2) for f in (self.query, self.key, self.value))
        if self.kind == "value_gated":
            gate = (v * self.value_gate["direction"].weight[:, None]).sum(dim=3, keepdim=True)
            v = v * torch.sigmoid(gate + self.value_gate["bias"].weight[:, None])
        if self.kind.startswith("mlp"):
            q, k = self.feature_map(q), self.feature_map(k)
        if self.kind.startswith("linear"):
            w = (elu(q) + 1) @ (elu(k) + 1).transpose(2, 3)
        else:
            w = q @ k.transpose(2, 3) / D**0.5
        if self.kind == "softmax":
            w = w.masked_fill(~visible, float("-inf")).softmax(dim=3)
        if self.kind in ("sigmoid_norm", "sigmoid_unnorm"):
            w = torch.sigmoid(w)
        if self.kind.startswith("coupled_linear"):
            w = elu(w) + 1
        if self.kind == "uniform":
            w = torch.ones_like(w)
        extra = None
        if self.kind in MITIGATIONS:
            w, extra = self.made_against_sinks(w, q, visible)
        w = w * visible
        if self.kind in ("sigmoid_norm", "linear", "coupled_linear_norm", "uniform"):
            w = w / (w.sum(dim=3, keepdim=True) + 1e-9)
        if self.kind in ("raw_dotproduct_norm", "mlp_norm"):
            w = w / torch.clamp(w.sum(dim=3, keepdim=True).abs(), min=1)
        mixed = w @ v
        if self.kind == "kv_bias":
            mixed = mixed + extra * self.extra_value.weight[:, None]
        if self.kind in ("gated_head", "gated_element"):
            gates = torch.sigmoid(self.output_gate(x)).view(B, T, H, -1)
            mixed = mixed * gates.transpose(1, 2)
        return self.output(mixed.transpose(1, 2).reshape(B, T, C)), w


class PlainBlock(nn.Module):
    def __init__(self, config: RunConfig):
        super().__init__()
        norm = nn.LayerNorm if config.use_layernorm else nn.Identity
        self.attention_norm = norm(config.embed_dim)
        self.attention = PlainAttention(config)
        self.mlp = nn.Sequential(norm(config.embed_dim), *mlp(config.embed_dim)) if config.use_mlp else None
        self.residual = 1 if config.use_residual else 0

    def forward(self, x: Tensor, visible: Tensor) -> tuple[Tensor, Tensor]:
        mixed, w = self.attention(self.attention_norm(x), visible)
        x = self.residual * x + mixed
        return (x if self.mlp is None else self.residual * x + self.mlp(x)), w


class PlainTransformer(nn.Module):
    """forward: tokens (B, T), or vectors (B, T, features), to the logits (B, T, classes) at every position, and each
    layer's weights."""

    def __init__(self, config: RunConfig):
        super().__init__()
        self.config = config
        task = find_task(config.task)(config)
        width = config.embed_dim // 2 if config.positional_type == "concat" else config.embed_dim
        if config.task == "trigger":
            self.token_embedding = nn.Linear(task.num_features, width)
        else:
            self.token_embedding = nn.Embedding(task.num_tokens, width)
        if config.positional_type != "no":
            self.position_embedding = nn.Embedding(512, width)
        self.blocks = nn.ModuleList(PlainBlock(config) for _ in range(config.num_layers))
        self.norm = nn.LayerNorm(config.embed_dim) if config.use_layernorm else nn.Identity()
        self.head = nn.Linear(config.embed_dim, task.num_classes)

    def forward(self, tokens: Tensor) -> tuple[Tensor, list[Tensor]]:
        B, T = tokens.shape[:2]
        x = self.token_embedding(tokens)
        if self.config.positional_type == "add":
            x = x + self.position_embedding(torch.arange(T))
        if self.config.positional_type == "concat":
            x = torch.cat([x, self.position_embedding(torch.arange(T)).expand(B, -1, -1)], dim=2)
        visible = torch.ones(T, T, dtype=torch.bool)
        if self.config.task != "classification":
            visible = visible.tril()
        weights = []
        for block in self.blocks:
            x, w = block(x, visible)
            weights.append(w)
        return self.head(self.norm(x)), weights


def plain_loss(config: RunConfig, logits: Tensor, targets: Tensor) -> Tensor:
    """Logits (B, T, classes) at every position; targets (B, T), or labels (B,) for classification."""
    if config.task == "classification":
        return cross_entropy(logits[:, -1], targets)
    if config.task == "trigger":
        return ((logits - targets) ** 2).mean()
    if config.task == "backcopy":
        return cross_entropy(logits.reshape(-1, logits.shape[-1]), targets.reshape(-1))
    loss = cross_entropy(logits[:, -1], targets[:, -1])
    others = cross_entropy(logits[:, :-1].reshape(-1, logits.shape[-1]), targets[:, :-1].reshape(-1))
    return loss + config.aux_loss_weight * others


def plain_training(config: RunConfig, inputs: Tensor, targets: Tensor):
    """A training step after another on the given sequences, endlessly; yields the loss of each."""
    model = PlainTransformer(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.lr, foreach=False)
    while True:
        for x, y in DataLoader(TensorDataset(inputs, targets), config.batch_size, shuffle=True):
            loss = plain_loss(config, model(x)[0], y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            yield loss.item()


def plain_induction_sequences(config: RunConfig, num: int) -> tuple[Tensor, Tensor]:
    rows = []
    for _ in range(num):
        x = random.sample(range(1, config.vocab_size), config.seq_length - 3)
        r = random.randrange(len(x))
        y = x[r] + (config.vocab_size if config.shift_query_token else 0)
        rows.append([0, *x, y, [*x, y][r + 1]])
    ids = torch.tensor(rows)
    return ids[:, :-1], ids[:, 1:]


@torch.no_grad()
def plain_bos_attention(model: nn.Module, inputs: Tensor) -> dict[str, float]:
    """The sink score of each head, a sequence at a time."""
    sums: dict[str, float] = {}
    for row in inputs:
        for layer, w in enumerate(model(row[None])[1]):
            for head in range(w.shape[1]):
                rows = w[0, head, 1 : w.shape[-1] - 2]
                share = rows[:, 0].sum() / (rows.sum() + 1e-9)
                name = f"{layer}_{head}_rel_attn_bos_global"
                sums[name] = sums.get(name, 0.0) + share.item()
    return {name: value / len(inputs) for name, value in sums.items()}


@torch.no_grad()
def plain_label_mixing(model: nn.Module, inputs: Tensor, labels: Tensor, num_pairs: int) -> dict[str, float]:
    """The flip rate of each head, a pair at a time."""
    of_label = {label: (labels == label).nonzero()[:, 0].tolist() for label in labels.unique().tolist()}
    rates = {}
    layers = model(inputs[:1])[1]
    for layer in range(len(layers)):
        for head in range(layers[layer].shape[1]):
            won = 0
            for _ in range(num_pairs):
                pair = random.sample(sorted(of_label), 2)
                a, b = (inputs[random.choice(of_label[label])] for label in pair)
                tops = [model(x[None])[1][layer][0, head, -1, :-1].argmax().item() for x in (a, b)]
                for (one, top), (other, skip), label in (
                    ((a, tops[0]), (b, tops[1]), pair[0]),
                    ((b, tops[1]), (a, tops[0]), pair[1]),
                ):
                    rest = [t for i, t in enumerate(other[:-1].tolist()) if i != skip] + [one[top].item()]
                    random.shuffle(rest)
                    mixed = torch.tensor([*rest, 0])
                    won += model(mixed[None])[0][0, -1].argmax().item() == label
            rates[f"mixing/{layer}_{head}/avg_top1_dominance_rate"] = won / (2 * num_pairs)
    return rates
