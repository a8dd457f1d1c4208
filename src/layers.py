"""Layers of a stack: S models of one shape, side by side in tensors whose first dimension is the member.

Rows are (S, N, C): N rows of C numbers for each member. A single model is a stack of one, for which each layer is
torch's own.
"""

import math
from collections.abc import Sequence

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from src.cpu import OneDNNLinear, onednn_applies


def rows_at(x: Tensor, index: Tensor) -> Tensor:
    """The rows of each member's x (S, N, C) at its own index (S, M): (S, M, C)."""
    S, N, C = x.shape
    if S > 1:
        index = index + N * torch.arange(S, device=index.device)[:, None]
    return x.flatten(0, 1).index_select(0, index.flatten()).view(S, -1, C)


class Linear(nn.Module):
    """nn.Linear of each member: x (S, N, in) to (S, N, out)."""

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
        if onednn_applies(x):
            return OneDNNLinear.apply(x, self.weight, self.bias)
        if len(x) == 1:
            return F.linear(x, self.weight.flatten(0, 1), self.bias.flatten())
        return torch.baddbmm(self.bias[:, None], x, self.weight.mT)


class Embedding(nn.Module):
    """nn.Embedding of each member: ids (S, N) to (S, N, C)."""

    def __init__(self, members: int, num: int, dim: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(members, num, dim))

    @torch.no_grad()
    def initialise(self, generators: Sequence[Generator]) -> None:
        for weight, generator in zip(self.weight, generators, strict=True):
            nn.init.normal_(weight, generator=generator)

    def forward(self, ids: Tensor) -> Tensor:
        S, num, _ = self.weight.shape
        if S > 1:
            ids = ids + num * torch.arange(S, device=ids.device)[:, None]
        return F.embedding(ids, self.weight.flatten(0, 1))


class LayerNorm(nn.Module):
    """nn.LayerNorm of each member, over the last dimension of x (S, N, C)."""

    def __init__(self, members: int, dim: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(members, dim))
        self.bias = nn.Parameter(torch.zeros(members, dim))

    def forward(self, x: Tensor) -> Tensor:
        size = x.shape[-1:]
        if len(x) == 1:
            return F.layer_norm(x, size, self.weight.flatten(), self.bias.flatten())
        return torch.addcmul(self.bias[:, None], F.layer_norm(x, size), self.weight[:, None])
