"""The transformer of both tasks: pre-norm blocks whose attention type is a choice; S models as one stack.

A model is a stack: S models of one shape that share nothing, their parameters side by side (src/model/layers.py). A
single model is a stack of one.

Nothing is computed twice, and nothing that no output needs:

- Before the first block a position's state is a function of its token (and place); after a causal block, of
  the tokens up to it. So states are kept as rows, one for each distinct such thing in the member's batch, and
  an `index` says which row stands where.
- A block has queries, and everything after them, only at the positions that somebody reads: the last block
  only at those that reach the loss.
- Where tokens are neither hidden nor numbered, sequences of the same tokens have the same outputs in any order: one
  of them is run for all.

All are exact: the same sums, over fewer rows. On a GPU the first and the last are left out where the number of rows
depends on what the tokens are: the host would wait for it in every step.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from src.model.attention import AttentionType
from src.model.layers import Embedding, LayerNorm, Linear, PerHead, ValueGate, of_members
from src.model.registry import ATTENTION, find_attention

MAX_POSITIONS = 512
EVERYWHERE = slice(None)


def static_sizes(tokens: Tensor) -> bool:
    """Whether no size may depend on what the tokens are."""
    return tokens.is_cuda


def distinct(ids: Tensor, multiple: int = 16) -> tuple[Tensor, Tensor]:
    """Where each distinct id of a member's `ids` (S, B, T) stands first, (S, N) in its flattened ids, and the
    index (S · B, T), into the S · N of them, of the one that stands at each place.

    N is the largest number of any member, rounded up to a `multiple`, by rows that stand nowhere: oneDNN prepares
    its products anew for each size that it meets, which costs more than those rows. They are rows of the member
    itself, which no other member's infinities reach.
    """
    S, B, T = ids.shape
    own = of_members(ids, int(ids.max()) + 1) if S > 1 else ids
    values, index = own.unique(return_inverse=True)  # sorted, so that those of a member follow each other
    places = torch.arange(B * T, device=ids.device).repeat(S)
    first = places.new_full((len(values),), B * T)
    first.scatter_reduce_(0, index.flatten(), places, "amin")
    if S == 1:
        return F.pad(first, (0, -len(first) % multiple))[None], index[0]
    start = index.amin((1, 2))  # (S,), the first of a member's values
    counts = index.amax((1, 2)) + 1 - start
    N = int(counts.max())
    N += -N % multiple
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


def take(x: Tensor, places: Tensor) -> Tensor:
    """The rows of x (N, ...) at `places`: x itself, which costs nothing, where those are all its rows in order. On a
    GPU that is not asked: the host would wait."""
    if len(places) == len(x) and not x.is_cuda and bool((places[1:] > places[:-1]).all()):
        return x
    return x.index_select(0, places)


def gather(layer: Callable[[Tensor], Tensor], x: Tensor, index: Tensor) -> Tensor:
    """`layer` of the rows of x (S · N, C) that stand at `index` (S · B, T): (S · B, T, C'), each computed once."""
    places = index.flatten()
    rows = take(layer(x), places) if len(x) <= len(places) else layer(take(x, places))
    return rows.view(*index.shape, -1)


def mlp(members: int, dim: int) -> nn.Sequential:
    """dim → 4 dim → dim, GELU between."""
    return nn.Sequential(Linear(members, dim, 4 * dim), nn.GELU(), Linear(members, 4 * dim, dim))


class Attention(nn.Module):
    """Multi-head attention of one type, from distinct rows to the places that are read.

    `benchmarks/plain.py` is the version to read first: every position, one model, no rows.
    """

    def __init__(self, members: int, embed_dim: int, num_heads: int, kind: AttentionType, longest_row: int):
        super().__init__()
        self.members, self.num_heads, self.head_dim = members, num_heads, embed_dim // num_heads
        self.type = kind
        self.query = Linear(members, embed_dim, embed_dim)
        self.key = Linear(members, embed_dim, embed_dim)
        self.value = Linear(members, embed_dim, embed_dim)
        self.output = Linear(members, embed_dim, embed_dim)
        # shared by queries, keys and heads
        self.feature_map = mlp(members, self.head_dim) if kind.feature_map else nn.Identity()
        self.numbers = nn.ParameterDict(
            {name: torch.full((members, num_heads), float(start(longest_row))) for name, start in kind.numbers.items()}
        )
        self.extra_key = self.extra_value = None
        if kind.extra_key:
            self.extra_key = PerHead(members, num_heads, self.head_dim, like=embed_dim)
        if kind.extra_key == "key and value":
            self.extra_value = PerHead(members, num_heads, self.head_dim, like=embed_dim)
        self.value_gate = ValueGate(members, num_heads, self.head_dim) if kind.value_gate else None
        gates = {"head": num_heads, "element": embed_dim}
        self.output_gate = Linear(members, embed_dim, gates[kind.output_gate]) if kind.output_gate else None

    def features(self, rows: Tensor) -> Tensor:
        return self.feature_map(rows.view(-1, self.head_dim)).view(rows.shape)

    def queries(self, x: Tensor) -> Tensor:
        return self.features(self.query(x))

    def keys(self, x: Tensor) -> Tensor:
        return self.features(self.key(x))

    def values(self, x: Tensor) -> Tensor:
        v = self.value(x)
        return v if self.value_gate is None else self.value_gate(v)

    def heads(self, rows: Tensor) -> Tensor:
        """(..., P, C) → (..., H, P, D)"""
        return rows.unflatten(-1, (self.num_heads, self.head_dim)).transpose(-2, -3)

    def forward(
        self, x: Tensor, index: Tensor, read: slice, wanted: Tensor, mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """x (S · N, C), index (S · B, T), mask (R, T) for the R positions of `read`, wanted (S · M) of the
        S · B · R places: the output (S · M, C) and the weights (S · B, H, R, T)."""
        q = gather(self.queries, x, index[:, read])  # (S · B, R, C)
        S, (_, T) = self.members, index.shape
        # The scores against all rows may be smaller than the keys at all places: then score rows.
        few_rows = self.num_heads * q.shape[1] * len(x) <= S * T * x.shape[1]
        attend = self.attend_to_rows if few_rows and self.type.whole is None else self.attend_to_places
        mixed, weights = attend(q, x, index, mask)
        mixed = take(mixed, wanted)
        if self.output_gate is not None:
            mixed = mixed * self.gates(x, index, read, wanted)
        return self.output(mixed), weights

    def gates(self, x: Tensor, index: Tensor, read: slice, wanted: Tensor) -> Tensor:
        """What each head's output is multiplied by, of the inputs at the wanted places: (S · M, C)."""
        inputs = take(x, take(index[:, read].flatten(), wanted))
        gates = torch.sigmoid(self.output_gate(inputs))
        return gates.repeat_interleave(x.shape[1] // gates.shape[1], dim=1)

    def mean_gates(self, x: Tensor) -> Tensor | None:
        """The gates of each head, of values or output, at the inputs x (S · N, C): (S · N, H); None if ungated."""
        if self.output_gate is not None:
            return torch.sigmoid(self.output_gate(x)).unflatten(1, (self.num_heads, -1)).mean(-1)
        if self.value_gate is not None:
            values = self.value(x).view(self.members, -1, self.num_heads, self.head_dim)
            return self.value_gate.gates(values).view(-1, self.num_heads)
        return None

    def attend_to_places(self, q: Tensor, x: Tensor, index: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Values mixed for the queries q (S · B, R, C), as (S · B · R, C), and the weights (S · B, H, R, T)."""
        k, v = (self.heads(gather(layer, x, index)) for layer in (self.keys, self.values))
        q, B = self.heads(q), len(q) // self.members

        def own(numbers: Tensor) -> Tensor:
            """A head's numbers (S, H, ...) for each sequence, one query and one key: (S · B, H, 1, ...)."""
            return numbers.repeat_interleave(B, 0).unsqueeze(2)

        if self.type.whole is not None:
            weights = self.type.whole(q, k, mask)
        else:
            extra = None if self.extra_key is None else self.type.kernel(q, own(self.extra_key.weight))
            numbers = {name: own(number.unsqueeze(-1)) for name, number in self.numbers.items()}
            weights, of_extra = self.normalise(self.type.kernel(q, k), mask, extra, numbers)
        mixed = weights @ v
        if self.extra_value is not None:
            mixed = mixed + of_extra * own(self.extra_value.weight)
        return mixed.transpose(1, 2).flatten(2).flatten(0, 1), weights

    def attend_to_rows(self, q: Tensor, x: Tensor, index: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """The same, from the scores and weights of each query on its member's distinct rows x."""
        S, H, (_, R, _) = self.members, self.num_heads, q.shape
        k, v = (self.heads(layer(x).unflatten(0, (S, -1))) for layer in (self.keys, self.values))  # (S, H, N, D)
        q = self.heads(q.flatten(0, 1).unflatten(0, (S, -1)))  # (S, H, B · R, D)
        scores = self.type.kernel(q, k)  # (S, H, B · R, N)
        own = index.unflatten(0, (S, -1)) - of_members(index.new_zeros(S, 1, 1), k.shape[2])
        places = own[:, None, :, None].expand(-1, H, -1, R, -1)  # (S, H, B, R, T)
        at_places = scores.unflatten(2, (-1, R)).gather(-1, places)
        extra = None
        if self.extra_key is not None:
            extra = self.type.kernel(q, self.extra_key.weight.unsqueeze(2)).unflatten(2, (-1, R))  # (S, H, B, R, 1)
        numbers = {name: number[:, :, None, None, None] for name, number in self.numbers.items()}
        weights, of_extra = self.normalise(at_places, mask, extra, numbers)
        of_rows = torch.zeros_like(scores).unflatten(2, (-1, R)).scatter_add(-1, places, weights)
        mixed = of_rows.flatten(2, 3) @ v  # (S, H, B · R, D)
        if self.extra_value is not None:
            mixed = mixed + of_extra.flatten(2, 3) * self.extra_value.weight.unsqueeze(2)
        return mixed.transpose(1, 2).flatten(2).flatten(0, 1), weights.transpose(1, 2).flatten(0, 1)

    def normalise(
        self, scores: Tensor, mask: Tensor | None, extra: Tensor | None, numbers: dict[str, Tensor]
    ) -> tuple[Tensor, Tensor | None]:
        """Weights of scores (..., R, T), and of the scores `extra` (..., R, 1) of the key that every query sees."""
        if extra is None:
            return self.type.normalise(scores, mask, **numbers), None
        if mask is not None:
            mask = F.pad(mask, (0, 1), value=True)
        weights = self.type.normalise(torch.cat([scores, extra], -1), mask, **numbers)
        return weights[..., :-1], weights[..., -1:]


@dataclass(frozen=True)
class Shown:
    """What a block shows of itself, at every position, to those who ask.

    Args:
        values: What attention mixes, (S, B, H, T, D), after the gate of values where there is one.
        gates: Each head's gate, (S, B, H, T), the mean where it has one for each element; None without gates.
        states: The residual stream after the block, (S, B, T, C).
    """

    values: Tensor
    gates: Tensor | None
    states: Tensor


class Block(nn.Module):
    """`x += attention(LN(x))`, `x += MLP(LN(x))`; `x = …` without `use_residual`."""

    def __init__(
        self,
        members: int,
        embed_dim: int,
        num_heads: int,
        kind: AttentionType,
        longest_row: int,
        use_mlp: bool,
        use_layernorm: bool,
        use_residual: bool,
    ):
        super().__init__()
        self.use_residual = use_residual
        norm = LayerNorm if use_layernorm else nn.Identity
        self.attention_norm = norm(members, embed_dim)
        self.attention = Attention(members, embed_dim, num_heads, kind, longest_row)
        self.mlp = nn.Sequential(norm(members, embed_dim), *mlp(members, embed_dim)) if use_mlp else None

    def forward(
        self, x: Tensor, index: Tensor, read: slice, wanted: Tensor, mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Shapes as in `Attention.forward`: the S · M wanted rows after the block, and the weights."""
        mixed, weights = self.attention(self.attention_norm(x), index, read, wanted, mask)
        if not self.use_residual:
            return (mixed if self.mlp is None else self.mlp(mixed)), weights
        x = take(x, take(index[:, read].flatten(), wanted)) + mixed
        return (x if self.mlp is None else x + self.mlp(x)), weights

    def show(self, x: Tensor, index: Tensor, after: Tensor, next_index: Tensor) -> Shown:
        """What it shows of the rows x (S · N, C) that it gets and the rows `after` it, at their indices (S · B, T)."""
        attention, x = self.attention, self.attention_norm(x)
        S, H = attention.members, attention.num_heads
        values = gather(attention.values, x, index).unflatten(-1, (H, -1)).transpose(1, 2).unflatten(0, (S, -1))
        gates = attention.mean_gates(x)
        if gates is not None:
            gates = gather(nn.Identity(), gates, index).transpose(1, 2).unflatten(0, (S, -1))
        return Shown(values, gates, gather(nn.Identity(), after, next_index).unflatten(0, (S, -1)))


class Transformer(nn.Module):
    """Tokens to class logits at every position, or at those that are read, for each member of a stack.

    Sizes and switches as in RunConfig; `causal` hides later tokens; longest_row is the length of a sequence.
    Where num_tokens is None, inputs are vectors of num_features numbers, which a linear map embeds. Parameters start
    as PyTorch's defaults, those of each member drawn from its generator.
    """

    def __init__(
        self,
        num_tokens: int | None,
        num_classes: int,
        *,
        causal: bool,
        longest_row: int,
        num_features: int | None = None,
        embed_dim: int,
        num_layers: int,
        num_heads: int,
        attention_type: str,
        positional_type: str,
        use_mlp: bool,
        use_layernorm: bool,
        use_residual: bool,
        generators: Sequence[Generator],
    ):
        super().__init__()
        S = len(generators)
        self.causal, self.positional_type = causal, positional_type
        # A function of the user's own may tell first from last.
        self.any_order = not causal and positional_type == "no" and attention_type in ATTENTION
        width = embed_dim // 2 if positional_type == "concat" else embed_dim
        self.token_embedding = Linear(S, num_features, width) if num_tokens is None else Embedding(S, num_tokens, width)
        self.position_embedding = None if positional_type == "no" else Embedding(S, MAX_POSITIONS, width)
        kind = find_attention(attention_type)
        self.blocks = nn.ModuleList(
            Block(S, embed_dim, num_heads, kind, longest_row, use_mlp, use_layernorm, use_residual)
            for _ in range(num_layers)
        )
        self.norm = LayerNorm(S, embed_dim) if use_layernorm else nn.Identity()
        self.head = Linear(S, embed_dim, num_classes)
        for module in self.modules():
            if isinstance(module, Linear | Embedding | PerHead):
                module.initialise(generators)

    def embed(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings (S · N, C), one for each distinct token and place, and the index (S · B, T) of each of
        `tokens` (S, B, T), or of vectors (S, B, T, features)."""
        S, B, T = tokens.shape[:3]
        if tokens.is_floating_point():
            index = torch.arange(S * B * T, device=tokens.device).view(S * B, T)
            return self.place(self.token_embedding(tokens.flatten(0, 2)), index.view(S, -1) % T), index
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
        return self.place(self.token_embedding(rows // T), rows % T), index

    def place(self, x: Tensor, places: Tensor) -> Tensor:
        """Embedded tokens (S · N, width) with the embeddings of their places (S, N)."""
        if self.positional_type == "add":
            return x + self.position_embedding(places)
        if self.positional_type == "concat":
            return torch.cat([x, self.position_embedding(places)], dim=-1)
        return x

    def forward(
        self, tokens: Tensor, read: slice = EVERYWHERE, shown: list[Shown] | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """Each member's tokens (S, B, T), at most 512 long, to its logits (S, B, R, classes) at the R positions
        of `read`.

        Also returns each block's attention weights: (S, B, H, T, T), of the last block (S, B, H, R, T). Tokens may
        be vectors (S, B, T, features), where the model is of such. A single model takes tokens (B, T) too, and
        returns everything without the dimension S. What each block shows is appended to `shown`, where that is given,
        with `read` everywhere.
        """
        if tokens.dim() == 2 + tokens.is_floating_point():
            (logits,), weights = self(tokens[None], read, shown)
            return logits, [w[0] for w in weights]
        if self.any_order and shown is None and not tokens.is_floating_point() and not static_sizes(tokens):
            return self.each_set_once(tokens, read)
        return self.each_sequence(tokens, read, shown)

    def each_set_once(self, tokens: Tensor, read: slice) -> tuple[Tensor, list[Tensor]]:
        """As `forward`, by running one of a member's sequences for all that have the same tokens: those at `read` in
        their order, the others in any."""
        S, B, T = tokens.shape
        places = torch.arange(T)
        last = places[read]
        others = places[torch.isin(places, last, invert=True)]
        others = others[tokens[:, :, others].argsort(-1)]
        order = torch.cat([others, last.expand(S, B, -1)], -1)  # (S, B, T): the place of what comes t-th when ordered
        ordered = tokens.gather(-1, order)
        first, index = distinct(prefix_ids(ordered)[:, :, -1:], multiple=4)  # (S, N), (S · B, 1)
        if first.shape[1] >= B:
            return self.each_sequence(tokens, read)
        ordered = ordered.gather(1, first[:, :, None].expand(-1, -1, T))
        outputs, all_weights = self.each_sequence(ordered, slice(T - len(last), None))
        rank = order.argsort(-1)[:, :, None, None]  # (S, B, 1, 1, T)

        def of_all(x: Tensor) -> Tensor:
            """(S, N, ...) → (S, B, ...)"""
            return x.flatten(0, 1).index_select(0, index.flatten()).unflatten(0, (S, B))

        weights = []
        for block, w in zip(self.blocks, all_weights, strict=True):
            w = of_all(w)
            w = w.gather(-1, rank.expand_as(w))
            weights.append(w if block is self.blocks[-1] else w.gather(-2, rank.mT.expand_as(w)))
        return of_all(outputs), weights

    def each_sequence(
        self, tokens: Tensor, read: slice, shown: list[Shown] | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """As `forward`, of a stack's tokens."""
        vectors = tokens.is_floating_point()
        S, B, T = tokens.shape[:3]
        x, index = self.embed(tokens)
        ids = prefix_ids(tokens) if self.causal and not vectors and not static_sizes(tokens) else None
        mask = torch.ones(T, T, dtype=torch.bool, device=tokens.device).tril() if self.causal else None
        weights = []
        for block in self.blocks:
            at = read if block is self.blocks[-1] else EVERYWHERE
            wanted, next_index = every(index.view(S, B, T)[:, :, at]) if ids is None else distinct(ids[:, :, at])
            wanted = of_members(wanted, next_index.numel() // S).flatten()
            before = x
            x, w = block(x, index, at, wanted, None if mask is None else mask[at])
            weights.append(w.unflatten(0, (S, B)))
            if shown is not None:
                shown.append(block.show(before, index, x, next_index))
            index = next_index
        return gather(self.head, self.norm(x), index).unflatten(0, (S, B)), weights
