"""The transformer of both tasks: pre-norm blocks whose attention type is a choice; S models as one stack.

A model is a stack: S models of one shape that share nothing, their parameters side by side (src/model/layers.py). A
single model is a stack of one.

Nothing is computed twice, and nothing that no output needs:

- Before the first block a position's state is a function of its token (and place); after a causal block, of
  the tokens up to it. So states are kept as rows, one for each distinct such thing in the member's batch, and
  an `index` says which row stands where.
- A block has queries, and everything after them, only at the positions that somebody reads: the last block
  only at those that reach the loss.

Both are exact: the same sums, over fewer rows. On a GPU the first is left out where the number of rows depends on
what the tokens are: the host would wait for it in every step.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from src.model.attention import ATTENTION
from src.model.layers import Embedding, LayerNorm, Linear, of_members

MAX_POSITIONS = 512
EVERYWHERE = slice(None)


def static_sizes(tokens: Tensor) -> bool:
    """Whether no size may depend on what the tokens are."""
    return tokens.is_cuda


def distinct(ids: Tensor) -> tuple[Tensor, Tensor]:
    """Where each distinct id of a member's `ids` (S, B, T) stands first, (S, N) in its flattened ids, and the
    index (S · B, T), into the S · N of them, of the one that stands at each place.

    N is the largest number of any member, rounded up to a multiple of 16, by rows that stand nowhere: oneDNN
    prepares its products anew for each size that it meets, which costs more than those rows. They are rows of
    the member itself, which no other member's infinities reach.
    """
    S, B, T = ids.shape
    own = of_members(ids, int(ids.max()) + 1) if S > 1 else ids
    values, index = own.unique(return_inverse=True)  # sorted, so that those of a member follow each other
    places = torch.arange(B * T, device=ids.device).repeat(S)
    first = places.new_full((len(values),), B * T)
    first.scatter_reduce_(0, index.flatten(), places, "amin")
    if S == 1:
        return F.pad(first, (0, -len(first) % 16))[None], index[0]
    start = index.amin((1, 2))  # (S,), the first of a member's values
    counts = index.amax((1, 2)) + 1 - start
    N = int(counts.max())
    N += -N % 16
    shift = N * torch.arange(S, device=ids.device) - start  # from a place among values to one among rows
    padded = first.new_zeros(S * N)
    padded[torch.arange(len(values), device=ids.device) + shift.repeat_interleave(counts)] = first
    return padded.view(S, N), (index + shift[:, None, None]).flatten(0, 1)


def every(ids: Tensor) -> tuple[Tensor, Tensor]:
    """As `distinct`, for ids (S, B, T) that all differ, whatever they are."""
    S, B, T = ids.shape
    places = torch.arange(B * T, device=ids.device).expand(S, -1)
    return places, of_members(places, B * T).reshape(S * B, T)


def prefix_ids(tokens: Tensor) -> Tensor:
    """Ids (S, B, T), equal at a place where two sequences of a member's `tokens` (S, B, T) are equal up to
    that place."""
    S, B, T = tokens.shape
    num_tokens = int(tokens.max()) + 1
    prefix, num_prefixes = torch.arange(S, device=tokens.device).repeat_interleave(B), S
    columns = []
    for t in range(T):
        if num_prefixes < S * B:  # else all differ already
            values, prefix = (prefix * num_tokens + tokens[:, :, t].flatten()).unique(return_inverse=True)
            num_prefixes = len(values)
        columns.append(t * S * B + prefix)
    return torch.stack(columns, dim=-1).view(S, B, T)


def gather(layer: Callable[[Tensor], Tensor], x: Tensor, index: Tensor) -> Tensor:
    """`layer` of the rows of x (S · N, C) that stand at `index` (S · B, T): (S · B, T, C'), each computed once."""
    places = index.flatten()
    rows = layer(x).index_select(0, places) if len(x) <= len(places) else layer(x.index_select(0, places))
    return rows.view(*index.shape, -1)


def mlp(members: int, dim: int) -> nn.Sequential:
    """dim → 4 dim → dim, GELU between."""
    return nn.Sequential(Linear(members, dim, 4 * dim), nn.GELU(), Linear(members, 4 * dim, dim))


class Attention(nn.Module):
    """Multi-head attention of one type, from distinct rows to the places that are read."""

    def __init__(self, members: int, embed_dim: int, num_heads: int, attention_type: str):
        super().__init__()
        self.num_heads, self.head_dim = num_heads, embed_dim // num_heads
        self.type = ATTENTION[attention_type]
        self.query = Linear(members, embed_dim, embed_dim)
        self.key = Linear(members, embed_dim, embed_dim)
        self.value = Linear(members, embed_dim, embed_dim)
        self.output = Linear(members, embed_dim, embed_dim)
        # shared by queries, keys and heads
        self.feature_map = mlp(members, self.head_dim) if self.type.feature_map else nn.Identity()

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
        """x (S · N, C), index (S · B, T), mask (R, T) for the R positions of `read`, wanted (S · M) of the
        S · B · R places: the output (S · M, C) and the weights (S · B, H, R, T)."""
        q = gather(self.queries, x, index[:, read])  # (S · B, R, C)
        S, (_, T) = len(self.query.weight), index.shape
        # The scores against all rows may be smaller than the keys at all places: then score rows.
        few_rows = self.num_heads * q.shape[1] * len(x) <= S * T * x.shape[1]
        attend = self.attend_to_rows if few_rows else self.attend_to_places
        mixed, weights = attend(q, x, index, mask)
        return self.output(mixed.index_select(0, wanted)), weights

    def attend_to_places(self, q: Tensor, x: Tensor, index: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Values mixed for the queries q (S · B, R, C), as (S · B · R, C), and the weights (S · B, H, R, T)."""
        k, v = (self.heads(gather(layer, x, index)) for layer in (self.keys, self.value))
        weights = self.type.weights(self.heads(q), k, mask)
        return (weights @ v).transpose(1, 2).flatten(2).flatten(0, 1), weights

    def attend_to_rows(self, q: Tensor, x: Tensor, index: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """The same, from the scores and weights of each query on its member's distinct rows x."""
        S, H, (_, R, _) = len(self.query.weight), self.num_heads, q.shape
        k, v = (self.heads(layer(x).unflatten(0, (S, -1))) for layer in (self.keys, self.value))  # (S, H, N, D)
        scores = self.type.kernel(self.heads(q.flatten(0, 1).unflatten(0, (S, -1))), k)  # (S, H, B · R, N)
        own = index.unflatten(0, (S, -1)) - of_members(index.new_zeros(S, 1, 1), k.shape[2])
        places = own[:, None, :, None].expand(-1, H, -1, R, -1)  # (S, H, B, R, T)
        at_places = scores.unflatten(2, (-1, R)).gather(-1, places)
        weights = self.type.normalise(at_places, mask)
        of_rows = torch.zeros_like(scores).unflatten(2, (-1, R)).scatter_add(-1, places, weights)
        mixed = of_rows.flatten(2, 3) @ v  # (S, H, B · R, D)
        return mixed.transpose(1, 2).flatten(2).flatten(0, 1), weights.transpose(1, 2).flatten(0, 1)


class Block(nn.Module):
    """`x += attention(LN(x))`, `x += MLP(LN(x))`."""

    def __init__(
        self, members: int, embed_dim: int, num_heads: int, attention_type: str, use_mlp: bool, use_layernorm: bool
    ):
        super().__init__()
        norm = LayerNorm if use_layernorm else nn.Identity
        self.attention_norm = norm(members, embed_dim)
        self.attention = Attention(members, embed_dim, num_heads, attention_type)
        self.mlp = nn.Sequential(norm(members, embed_dim), *mlp(members, embed_dim)) if use_mlp else None

    def forward(
        self, x: Tensor, index: Tensor, read: slice, wanted: Tensor, mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Shapes as in `Attention.forward`: the S · M wanted rows after the block, and the weights."""
        mixed, weights = self.attention(self.attention_norm(x), index, read, wanted, mask)
        x = x.index_select(0, index[:, read].flatten().index_select(0, wanted)) + mixed
        return (x if self.mlp is None else x + self.mlp(x)), weights


class Transformer(nn.Module):
    """Tokens to class logits at every position, or at those that are read, for each member of a stack.

    Sizes and switches as in RunConfig; `causal` hides later tokens. Parameters start as PyTorch's defaults,
    those of each member drawn from its generator.
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
        generators: Sequence[Generator],
    ):
        super().__init__()
        S = len(generators)
        self.causal, self.positional_type = causal, positional_type
        width = embed_dim // 2 if positional_type == "concat" else embed_dim
        self.token_embedding = Embedding(S, num_tokens, width)
        self.position_embedding = None if positional_type == "no" else Embedding(S, MAX_POSITIONS, width)
        self.blocks = nn.ModuleList(
            Block(S, embed_dim, num_heads, attention_type, use_mlp, use_layernorm) for _ in range(num_layers)
        )
        self.norm = LayerNorm(S, embed_dim) if use_layernorm else nn.Identity()
        self.head = Linear(S, embed_dim, num_classes)
        for module in self.modules():
            if isinstance(module, Linear | Embedding):
                module.initialise(generators)

    def embed(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings (S · N, C), one for each distinct token and place, and the index (S · B, T) of each of
        `tokens` (S, B, T)."""
        S, B, T = tokens.shape
        num_tokens, num_places = self.token_embedding.weight.shape[1], B * T
        if self.position_embedding is None and num_tokens <= num_places:
            return self.token_embedding.weight.flatten(0, 1), of_members(tokens, num_tokens).flatten(0, 1)
        pairs = tokens * T + torch.arange(T, device=tokens.device)
        if static_sizes(tokens) and num_tokens * T <= num_places:  # a row for each pair that there can be
            rows = torch.arange(num_tokens * T, device=tokens.device).expand(S, -1)
            index = of_members(pairs, num_tokens * T).flatten(0, 1)
        else:
            first, index = every(pairs) if static_sizes(tokens) else distinct(pairs)
            rows = pairs.flatten(1).gather(1, first)
        x = self.token_embedding(rows // T)
        if self.positional_type == "add":
            x = x + self.position_embedding(rows % T)
        elif self.positional_type == "concat":
            x = torch.cat([x, self.position_embedding(rows % T)], dim=-1)
        return x, index

    def forward(self, tokens: Tensor, read: slice = EVERYWHERE) -> tuple[Tensor, list[Tensor]]:
        """Each member's tokens (S, B, T), at most 512 long, to its logits (S, B, R, classes) at the R positions
        of `read`.

        Also returns each block's attention weights: (S, B, H, T, T), of the last block (S, B, H, R, T). A
        single model takes tokens (B, T) too, and returns everything without the dimension S.
        """
        if tokens.dim() == 2:
            (logits,), weights = self(tokens[None], read)
            return logits, [w[0] for w in weights]
        S, B, T = tokens.shape
        x, index = self.embed(tokens)
        ids = prefix_ids(tokens) if self.causal and not static_sizes(tokens) else None
        mask = torch.ones(T, T, dtype=torch.bool, device=tokens.device).tril() if self.causal else None
        weights = []
        for block in self.blocks:
            at = read if block is self.blocks[-1] else EVERYWHERE
            wanted, next_index = every(tokens[:, :, at]) if ids is None else distinct(ids[:, :, at])
            wanted = of_members(wanted, next_index.numel() // S).flatten()
            x, w = block(x, index, at, wanted, None if mask is None else mask[at])
            weights.append(w.unflatten(0, (S, B)))
            index = next_index
        return gather(self.head, self.norm(x), index).unflatten(0, (S, B)), weights
