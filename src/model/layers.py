"""Layers of a stack: S models of one shape, side by side in parameters whose first dimension is the member.

Rows are (S · N, C): N rows of C numbers for each member, those of a member after those of the one before it. A
single model is a stack of one, for which each layer is torch's own.
"""

import math
from collections.abc import Sequence

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from src.model.cpu import OneDNNLinear, onednn_applies


def of_members(indices: Tensor, size: int) -> Tensor:
    """Each member's own indices (S, ...), below `size`, as indices into the members' things one after another."""
    S = len(indices)
    if S == 1:
        return indices
    return indices + size * torch.arange(S, device=indices.device).view(S, *[1] * (indices.dim() - 1))


class Linear(nn.Module):
    """nn.Linear of each member: rows (S · N, inner) to (S · N, outer)."""

    def __init__(self, members: int, inner: int, outer: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(members, outer, inner))
        self.bias = nn.Parameter(torch.empty(members, outer))

    @torch.no_grad()
    def initialise(self, generators: Sequence[Generator]) -> None:
        bound = 1 / math.sqrt(self.weight.shape[-1])  # for the weight: kaiming_uniform_ with a = √5
        for weight, bias, generator in zip(self.weight, self.bias, generators, strict=True):
            nn.init.uniform_(weight, -bound, bound, generator=generator)
            nn.init.uniform_(bias, -bound, bound, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        S = len(self.weight)
        if S > 1:
            return torch.baddbmm(self.bias[:, None], x.unflatten(0, (S, -1)), self.weight.mT).flatten(0, 1)
        if onednn_applies(x):
            return OneDNNLinear.apply(x, self.weight, self.bias)
        return F.linear(x, self.weight.flatten(0, 1), self.bias.flatten())


class Embedding(nn.Module):
    """nn.Embedding of each member: ids (S, N) to rows (S · N, dim)."""

    def __init__(self, members: int, num: int, dim: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(members, num, dim))

    @torch.no_grad()
    def initialise(self, generators: Sequence[Generator]) -> None:
        for weight, generator in zip(self.weight, generators, strict=True):
            nn.init.normal_(weight, generator=generator)

    def forward(self, ids: Tensor) -> Tensor:
        ids = of_members(ids, self.weight.shape[1]).flatten()
        return F.embedding(ids, self.weight.flatten(0, 1))


class PerHead(nn.Module):
    """A vector of each member's head, `weight` (S, H, D), that starts like the bias of a Linear of `like` inputs."""

    def __init__(self, members: int, num_heads: int, dim: int, like: int):
        super().__init__()
        self.bound = 1 / math.sqrt(like)
        self.weight = nn.Parameter(torch.empty(members, num_heads, dim))

    @torch.no_grad()
    def initialise(self, generators: Sequence[Generator]) -> None:
        for weight, generator in zip(self.weight, generators, strict=True):
            nn.init.uniform_(weight, -self.bound, self.bound, generator=generator)


class ValueGate(nn.Module):
    """Each head's values v times sigmoid(w·v + b), w and b of the member's head: rows (S · N, H · D) to the same."""

    def __init__(self, members: int, num_heads: int, head_dim: int):
        super().__init__()
        self.direction = PerHead(members, num_heads, head_dim, like=head_dim)
        self.bias = PerHead(members, num_heads, 1, like=head_dim)

    def gates(self, values: Tensor) -> Tensor:
        """(S, N, H, 1) of values (S, N, H, D)."""
        along = (values * self.direction.weight[:, None]).sum(-1, keepdim=True)
        return torch.sigmoid(along + self.bias.weight[:, None])

    def forward(self, rows: Tensor) -> Tensor:
        S, H, D = self.direction.weight.shape
        values = rows.view(S, -1, H, D)
        return (values * self.gates(values)).view(rows.shape)


class LayerNorm(nn.Module):
    """nn.LayerNorm of each member, over the last dimension of rows (S · N, dim)."""

    def __init__(self, members: int, dim: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(members, dim))
        self.bias = nn.Parameter(torch.zeros(members, dim))

    def forward(self, x: Tensor) -> Tensor:
        S, dim = self.weight.shape
        if S == 1:
            return F.layer_norm(x, (dim,), self.weight.flatten(), self.bias.flatten())
        normed = F.layer_norm(x, (dim,)).unflatten(0, (S, -1))
        return torch.addcmul(self.bias[:, None], normed, self.weight[:, None]).flatten(0, 1)
