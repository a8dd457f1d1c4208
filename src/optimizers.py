"""Optimisers of a stack of models: a learning rate for each member, other numbers shared.

A stack's parameters are (S, ...), S members side by side; an optimiser gets groups of neighbours of one learning rate,
whose parameters are views of the stack's: {"params": [(name, tensor), …], "lr": rate}. A new optimiser is an entry of
OPTIMIZERS: groups, weight decay and β₂ to an object whose `step` changes the parameters by their gradients.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw
from torch.optim.sgd import sgd

Group = Mapping[str, Any]


class Optimizer(Protocol):
    def step(self) -> object:
        """Change the parameters by their gradients."""


def with_gradient(group: Group) -> list[Tensor]:
    return [parameter for _, parameter in group["params"] if parameter.grad is not None]


class AdamW:
    """torch.optim.AdamW, whose class would import torch's compiler: a second for each process that trains."""

    def __init__(self, groups: Sequence[Group], weight_decay: float, beta2: float):
        self.groups, self.weight_decay, self.beta2 = groups, weight_decay, beta2
        self.moments: dict[Tensor, tuple[Tensor, Tensor, Tensor]] = {}  # of g and g², and steps so far

    @torch.no_grad()
    def step(self) -> None:
        for group in self.groups:
            parameters = with_gradient(group)
            for p in parameters:
                if p not in self.moments:
                    steps = torch.zeros((), dtype=torch.float32, device=p.device)  # as a GPU reads it, whatever p is
                    self.moments[p] = torch.zeros_like(p), torch.zeros_like(p), steps
            averages, squares, steps = ([self.moments[p][i] for p in parameters] for i in range(3))
            adamw(
                parameters,
                [p.grad for p in parameters],
                averages,
                squares,
                [],
                steps,
                fused=True,
                lr=group["lr"],
                beta1=0.9,
                beta2=self.beta2,
                eps=1e-8,
                weight_decay=self.weight_decay,
                amsgrad=False,
                maximize=False,
            )


class SGD:
    """torch.optim.SGD, with the momentum of a subclass; its class would import torch's compiler too."""

    momentum = 0.0

    def __init__(self, groups: Sequence[Group], weight_decay: float, beta2: float):
        self.groups, self.weight_decay = groups, weight_decay
        self.velocities: dict[Tensor, Tensor] = {}

    @torch.no_grad()
    def step(self) -> None:
        for group in self.groups:
            parameters = with_gradient(group)
            if self.momentum:
                self.velocities |= {p: torch.zeros_like(p) for p in parameters if p not in self.velocities}
            sgd(
                parameters,
                [p.grad for p in parameters],
                [self.velocities.get(p) for p in parameters],
                fused=True,
                lr=group["lr"],
                momentum=self.momentum,
                weight_decay=self.weight_decay,
                dampening=0,
                nesterov=False,
                maximize=False,
            )


class Momentum(SGD):
    momentum = 0.9


class Sign:
    """Signed gradients, `p ← (1 − lr λ) p − lr sign(g)`: a step changes every number by lr."""

    def __init__(self, groups: Sequence[Group], weight_decay: float, beta2: float):
        self.groups, self.weight_decay = groups, weight_decay

    @torch.no_grad()
    def step(self) -> None:
        for group in self.groups:
            for parameter in with_gradient(group):
                parameter.mul_(1 - group["lr"] * self.weight_decay)
                parameter.sub_(parameter.grad.sign(), alpha=group["lr"])


def orthogonalised(matrices: Tensor, steps: int = 5) -> Tensor:
    """About the nearest orthogonal matrix of each of `matrices` (..., m, n), by Newton–Schulz (Jordan, 2024).

    The quintic's numbers bring singular values near 1 fast, to between about 0.7 and 1.2, rather than exactly.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    wide = matrices.shape[-2] <= matrices.shape[-1]
    x = matrices if wide else matrices.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x if wide else x.mT


def hidden_matrices(group: Group) -> list[Tensor]:
    """The weights (S, out, in) of the blocks' linear maps, known by having a bias: no embedding, no head, nothing of an
    attention head's own."""
    names = {name for name, _ in group["params"]}
    return [
        parameter
        for name, parameter in group["params"]
        if name.startswith("blocks.") and parameter.dim() == 3 and f"{name.removesuffix('weight')}bias" in names
    ]


class Muon:
    """Orthogonalised Nesterov momentum for the blocks' matrices, AdamW for the rest (Jordan, 2024).

    `m ← 0.95 m + 0.05 g`, `p ← (1 − lr λ) p − lr √max(1, out/in) orthogonalised(0.05 g + 0.95 m)`. As a run has one
    learning rate, both have it; the rest's may be far from AdamW's best.
    """

    def __init__(self, groups: Sequence[Group], weight_decay: float, beta2: float, decay: float = 0.95):
        self.weight_decay, self.decay = weight_decay, decay
        self.matrices: list[tuple[Tensor, Tensor, float]] = []  # parameter, momentum, lr
        rest = []
        for group in groups:
            hidden = hidden_matrices(group)
            self.matrices += [(parameter, torch.zeros_like(parameter), group["lr"]) for parameter in hidden]
            taken = {id(parameter) for parameter in hidden}
            rest.append({**group, "params": [(name, p) for name, p in group["params"] if id(p) not in taken]})
        self.rest = AdamW(rest, weight_decay, beta2)

    @torch.no_grad()
    def step(self) -> None:
        self.rest.step()
        for parameter, average, lr in self.matrices:
            if parameter.grad is None:
                continue
            average.lerp_(parameter.grad, 1 - self.decay)
            update = orthogonalised(parameter.grad.lerp(average, self.decay))
            outer, inner = parameter.shape[-2:]
            parameter.mul_(1 - lr * self.weight_decay)
            parameter.sub_(update, alpha=lr * max(1, outer / inner) ** 0.5)


OPTIMIZERS: dict[str, Callable[[Sequence[Group], float, float], Optimizer]] = {
    "adamw": AdamW,
    "sgd": SGD,
    "momentum": Momentum,
    "sign": Sign,
    "muon": Muon,
}
USE_BETA2 = ("adamw", "muon")  # those for which β₂, the decay of the mean square gradient, means something
LR_BELOW = {"muon": (1, "whose steps have the size of lr")}  # learning rates that an optimiser bounds, and why


class StackedOptimizer:
    """An optimiser of OPTIMIZERS for a stack, with a learning rate for each member."""

    def __init__(
        self,
        model: nn.Module,
        lrs: Sequence[float],
        name: str = "adamw",
        weight_decay: float = 0.01,
        beta2: float = 0.999,
    ):
        self.parameters = dict(model.named_parameters())
        self.views: list[tuple[Tensor, Tensor, slice]] = []  # view, parameter, and which members it shows
        groups, start = [], 0
        for lr, same in itertools.groupby(lrs):
            span = slice(start, start := start + len(list(same)))
            shown = [(of, self._view(parameter, span)) for of, parameter in self.parameters.items()]
            groups.append({"params": shown, "lr": lr})
        self.optimizer = OPTIMIZERS[name](groups, weight_decay, beta2)

    def _view(self, parameter: Tensor, span: slice) -> Tensor:
        if span == slice(0, len(parameter)):
            return parameter
        view = parameter.detach()[span]
        self.views.append((view, parameter, span))
        return view

    def step(self) -> None:
        for view, parameter, span in self.views:
            view.grad = None if parameter.grad is None else parameter.grad[span]
        self.optimizer.step()

    def zero_grad(self) -> None:
        for parameter in self.parameters.values():
            parameter.grad = None
