"""The transformer of both tasks: pre-norm blocks whose attention type is a choice.

Nothing is computed twice, and nothing that no output needs:

- Before the first block a position's state is a function of its token (and place); after a causal block, of
  the tokens up to it. So states are kept as rows, one for each distinct such thing in the batch, and an
  `index` says which row stands where.
- A block has queries, and everything after them, only at the positions that somebody reads: the last block
  only at those that reach the loss.

Both are exact: the same sums, over fewer rows.
"""

import math
from collections.abc import Callable

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from src.attention import ATTENTION
from src.cpu import Linear

MAX_POSITIONS = 512
EVERYWHERE = slice(None)


def distinct(ids: Tensor) -> tuple[Tensor, Tensor]:
    """Where each distinct id of `ids` (B, T) stands first, (N,) in the flattened ids, and the index (B, T)
    of the one that stands at each place.

    N is rounded up to a multiple of 16 by rows that stand nowhere: oneDNN prepares its products anew for
    each size that it meets, which costs more than those rows.
    """
    values, index = ids.unique(return_inverse=True)
    places = torch.arange(ids.numel(), device=ids.device)
    first = places.new_full((len(values),), ids.numel())
    first.scatter_reduce_(0, index.flatten(), places, "amin")
    return F.pad(first, (0, -len(first) % 16)), index


def every(ids: Tensor) -> tuple[Tensor, Tensor]:
    """As `distinct`, for ids (B, T) that all differ, whatever they are."""
    places = torch.arange(ids.numel(), device=ids.device)
    return places, places.view(ids.shape)


def prefix_ids(tokens: Tensor) -> Tensor:
    """Ids (B, T), equal at a place where two sequences of `tokens` (B, T) are equal up to that place."""
    B, T = tokens.shape
    num_tokens = int(tokens.max()) + 1
    prefix, num_prefixes = tokens.new_zeros(B), 1
    ids = torch.empty_like(tokens)
    for t in range(T):
        if num_prefixes < B:  # else all differ already
            values, prefix = (prefix * num_tokens + tokens[:, t]).unique(return_inverse=True)
            num_prefixes = len(values)
        ids[:, t] = t * B + prefix
    return ids


def gather(layer: Callable[[Tensor], Tensor], x: Tensor, index: Tensor) -> Tensor:
    """`layer` of the rows of x (N, C) that stand at `index` (B, T): (B, T, C'), each row computed once."""
    places = index.flatten()
    rows = layer(x).index_select(0, places) if len(x) <= len(places) else layer(x.index_select(0, places))
    return rows.view(*index.shape, -1)


def mlp(dim: int) -> nn.Sequential:
    """dim → 4 dim → dim, GELU between."""
    return nn.Sequential(Linear(dim, 4 * dim), nn.GELU(), Linear(4 * dim, dim))


class Attention(nn.Module):
    """Multi-head attention of one type, from distinct rows to the places that are read."""

    def __init__(self, embed_dim: int, num_heads: int, attention_type: str):
        super().__init__()
        self.num_heads, self.head_dim = num_heads, embed_dim // num_heads
        self.type = ATTENTION[attention_type]
        self.query = Linear(embed_dim, embed_dim)
        self.key = Linear(embed_dim, embed_dim)
        self.value = Linear(embed_dim, embed_dim)
        self.output = Linear(embed_dim, embed_dim)
        # shared by queries, keys and heads
        self.feature_map = mlp(self.head_dim) if self.type.feature_map else nn.Identity()

    def features(self, rows: Tensor) -> Tensor:
        return self.feature_map(rows.view(-1, self.head_dim)).view(rows.shape)

    def queries(self, x: Tensor) -> Tensor:
        return self.features(self.query(x))

    def keys(self, x: Tensor) -> Tensor:
        return self.features(self.key(x))

    def heads(self, rows: Tensor) -> Tensor:
        """(..., P, C) → (..., H, P, D)"""
        return rows.unflatten(-1, (self.num_heads, self.head_dim)).transpose(-2, -3)

    def forward(
        self, x: Tensor, index: Tensor, read: slice, wanted: Tensor, mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """x (N, C), index (B, T), mask (R, T) for the R positions of `read`, wanted (M,) of the B · R places:
        the output (M, C) and the weights (B, H, R, T)."""
        q = gather(self.queries, x, index[:, read])  # (B, R, C)
        # The scores against all rows may be smaller than the keys at all places: then score rows.
        few_rows = self.num_heads * q.shape[1] * len(x) <= index.shape[1] * x.shape[1]
        attend = self.attend_to_rows if few_rows else self.attend_to_places
        mixed, weights = attend(q, x, index, mask)
        return self.output(mixed.index_select(0, wanted)), weights

    def attend_to_places(self, q: Tensor, x: Tensor, index: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Values mixed for the queries q (B, R, C), as (B · R, C), and the weights (B, H, R, T)."""
        k, v = (self.heads(gather(layer, x, index)) for layer in (self.keys, self.value))
        weights = self.type.weights(self.heads(q), k, mask)
        return (weights @ v).transpose(1, 2).flatten(2).flatten(0, 1), weights

    def attend_to_rows(self, q: Tensor, x: Tensor, index: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """The same, from the scores and weights of each query on the distinct rows x."""
        (B, R, _), H = q.shape, self.num_heads
        k, v = self.heads(self.keys(x)), self.heads(self.value(x))  # (H, N, D)
        scores = self.type.kernel(self.heads(q.flatten(0, 1)), k)  # (H, B · R, N)
        places = index[:, None].expand(H, B, R, -1)
        at_places = scores.view(H, B, R, -1).gather(-1, places)  # (H, B, R, T)
        weights = self.type.normalise(at_places, mask)
        of_rows = torch.zeros_like(scores).view(H, B, R, -1).scatter_add(-1, places, weights)
        mixed = of_rows.flatten(1, 2) @ v  # (H, B · R, D)
        return mixed.transpose(0, 1).flatten(1), weights.transpose(0, 1)


class Block(nn.Module):
    """`x += attention(LN(x))`, `x += MLP(LN(x))`."""

    def __init__(self, embed_dim: int, num_heads: int, attention_type: str, use_mlp: bool, use_layernorm: bool):
        super().__init__()
        norm = nn.LayerNorm if use_layernorm else nn.Identity
        self.attention_norm = norm(embed_dim)
        self.attention = Attention(embed_dim, num_heads, attention_type)
        self.mlp = nn.Sequential(norm(embed_dim), *mlp(embed_dim)) if use_mlp else None

    def forward(
        self, x: Tensor, index: Tensor, read: slice, wanted: Tensor, mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Shapes as in `Attention.forward`: the M wanted rows after the block, and the weights."""
        mixed, weights = self.attention(self.attention_norm(x), index, read, wanted, mask)
        x = x.index_select(0, index[:, read].flatten().index_select(0, wanted)) + mixed
        return (x if self.mlp is None else x + self.mlp(x)), weights


class Transformer(nn.Module):
    """Tokens to class logits at every position, or at those that are read.

    Sizes and switches as in RunConfig; `causal` hides later tokens. Parameters start as PyTorch's defaults,
    drawn from `generator`.
    """

    def __init__(
        self,
        num_tokens: int,
        num_classes: int,
        *,
        causal: bool,
        embed_dim: int,
        num_layers: int,
        num_heads: int,
        attention_type: str,
        positional_type: str,
        use_mlp: bool,
        use_layernorm: bool,
        generator: Generator,
    ):
        super().__init__()
        self.causal, self.positional_type = causal, positional_type
        width = embed_dim // 2 if positional_type == "concat" else embed_dim
        self.token_embedding = nn.Embedding(num_tokens, width)
        self.position_embedding = None if positional_type == "no" else nn.Embedding(MAX_POSITIONS, width)
        self.blocks = nn.ModuleList(
            Block(embed_dim, num_heads, attention_type, use_mlp, use_layernorm) for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(embed_dim) if use_layernorm else nn.Identity()
        self.head = Linear(embed_dim, num_classes)
        self.apply(lambda module: initialise(module, generator))

    def embed(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings (N, C), one for each distinct token and place, and the index (B, T) of each of `tokens`."""
        T = tokens.shape[1]
        if self.position_embedding is None and self.token_embedding.num_embeddings <= tokens.numel():
            return self.token_embedding.weight, tokens
        first, index = distinct(tokens * T + torch.arange(T, device=tokens.device))
        x = self.token_embedding(tokens.flatten()[first])
        if self.positional_type == "add":
            x = x + self.position_embedding(first % T)
        elif self.positional_type == "concat":
            x = torch.cat([x, self.position_embedding(first % T)], dim=-1)
        return x, index

    def forward(self, tokens: Tensor, read: slice = EVERYWHERE) -> tuple[Tensor, list[Tensor]]:
        """tokens (B, T), at most 512 long, to the logits (B, R, classes) at the R positions of `read`.

        Also returns each block's attention weights: (B, H, T, T), of the last block (B, H, R, T).
        """
        B, T = tokens.shape
        x, index = self.embed(tokens)
        ids = prefix_ids(tokens) if self.causal else None
        mask = torch.ones(T, T, dtype=torch.bool, device=tokens.device).tril() if self.causal else None
        weights = []
        for block in self.blocks:
            at = read if block is self.blocks[-1] else EVERYWHERE
            wanted, next_index = every(index[:, at]) if ids is None else distinct(ids[:, at])
            x, w = block(x, index, at, wanted, None if mask is None else mask[at])
            weights.append(w)
            index = next_index
        return gather(self.head, self.norm(x), index), weights


def initialise(module: nn.Module, generator: Generator) -> None:
    """PyTorch's default start of a Linear or Embedding, from a generator instead of the global state."""
    if isinstance(module, nn.Linear):
        bound = 1 / math.sqrt(module.in_features)  # for the weight: kaiming_uniform_ with a = √5
        nn.init.uniform_(module.weight, -bound, bound, generator=generator)
        nn.init.uniform_(module.bias, -bound, bound, generator=generator)
    elif isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight, generator=generator)
