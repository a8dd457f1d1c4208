"""Each optimiser's first steps by hand, stacked against alone, and Newton–Schulz."""

import math

import pytest
import torch
from torch import nn

from src.optimizers import OPTIMIZERS, StackedOptimizer, orthogonalised


class Tiny(nn.Module):
    """A stack with every kind of parameter: a block's matrix and bias, a vector of each head, an embedding."""

    def __init__(self, members: int, seed: int = 0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)

        def parameter(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(members, *shape, generator=generator, dtype=torch.float64))

        self.blocks = nn.ModuleList([nn.Module()])
        self.blocks[0].weight, self.blocks[0].bias = parameter(6, 3), parameter(6)
        self.blocks.append(nn.Module())
        self.blocks[1].weight = parameter(2, 4)  # of heads: no matrix
        self.embedding = parameter(5, 3)

    def set_gradients(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        for p in self.parameters():
            p.grad = torch.randn(p.shape, generator=generator, dtype=p.dtype)


def steps(model: Tiny, optimizer: StackedOptimizer, num: int = 4) -> None:
    for step in range(num):
        model.set_gradients(step)
        optimizer.step()


def copy_of(model: Tiny) -> list[torch.Tensor]:
    return [p.detach().clone() for p in model.parameters()]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_members_take_the_steps_that_they_take_alone(name):
    lrs = [0.1, 0.1, 0.003]
    stack = Tiny(3)
    alone = [Tiny(1) for _ in lrs]
    optimizer = StackedOptimizer(stack, lrs, name, weight_decay=0.2)
    singles = [StackedOptimizer(model, [lr], name, weight_decay=0.2) for model, lr in zip(alone, lrs, strict=True)]
    for i, model in enumerate(alone):
        for own, stacked in zip(model.parameters(), stack.parameters(), strict=True):
            own.data.copy_(stacked[i : i + 1])
    for step in range(4):
        stack.set_gradients(step)
        for i, model in enumerate(alone):
            for own, stacked in zip(model.parameters(), stack.parameters(), strict=True):
                own.grad = stacked.grad[i : i + 1].clone()
            singles[i].step()
        optimizer.step()
    for i, model in enumerate(alone):
        for own, stacked in zip(model.parameters(), stack.parameters(), strict=True):
            torch.testing.assert_close(own, stacked[i : i + 1])


@pytest.mark.parametrize(
    ("name", "theirs"),
    [
        ("adamw", lambda parameters, **rest: torch.optim.AdamW(parameters, betas=(0.9, 0.95), **rest)),
        ("sgd", lambda parameters, **rest: torch.optim.SGD(parameters, **rest)),
        ("momentum", lambda parameters, **rest: torch.optim.SGD(parameters, momentum=0.9, **rest)),
    ],
)
def test_it_is_torchs_to_the_bit(name, theirs):
    """Also where a parameter has a gradient in some steps alone."""
    model, plain = Tiny(1), Tiny(1)
    optimizer = StackedOptimizer(model, [0.1], name, weight_decay=0.2, beta2=0.95)
    reference = theirs(plain.parameters(), lr=0.1, weight_decay=0.2, fused=True)
    for step in range(6):
        for own, its_optimizer in ((model, optimizer), (plain, reference)):
            own.set_gradients(step)
            if step in (2, 3):
                own.embedding.grad = None
            its_optimizer.step()
    for ours, others in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(ours, others)


def test_beta2_reaches_adamw():
    """With β₂ = 0 and β₁ = 0.9, the second step is lr · (0.9 · 0.1 g + 0.1 h) / (0.19 |h|)."""
    model = Tiny(1)
    optimizer = StackedOptimizer(model, [0.01], weight_decay=0.0, beta2=0.0)
    model.set_gradients(0)
    g = model.embedding.grad.clone()
    optimizer.step()
    before = model.embedding.detach().clone()
    model.set_gradients(1)
    h = model.embedding.grad.clone()
    optimizer.step()
    torch.testing.assert_close(
        before - model.embedding, 0.01 * (0.09 * g + 0.1 * h) / (0.19 * h.abs()), rtol=1e-4, atol=0
    )


@pytest.mark.parametrize("name", ["sgd", "momentum"])
def test_descent_by_hand(name):
    """p ← p − lr m, m ← μ m + g + λ p, from m = g + λ p."""
    model, rate, decay, mu = Tiny(1), 0.1, 0.2, {"sgd": 0.0, "momentum": 0.9}[name]
    p, m = copy_of(model), [torch.zeros_like(p) for p in model.parameters()]
    optimizer = StackedOptimizer(model, [rate], name, weight_decay=decay)
    for step in range(3):
        model.set_gradients(step)
        for i, parameter in enumerate(model.parameters()):
            m[i] = mu * m[i] + parameter.grad + decay * p[i]
            p[i] = p[i] - rate * m[i]
        optimizer.step()
    for expected, parameter in zip(p, model.parameters(), strict=True):
        torch.testing.assert_close(parameter.detach(), expected)


def test_sign_moves_every_number_by_the_rate():
    model = Tiny(1)
    before = copy_of(model)
    optimizer = StackedOptimizer(model, [0.1], "sign", weight_decay=0.5)
    model.set_gradients(0)
    optimizer.step()
    for old, new in zip(before, model.parameters(), strict=True):
        torch.testing.assert_close((new - 0.95 * old).detach(), -0.1 * new.grad.sign())


@pytest.mark.parametrize("shape", [(4, 4), (3, 8), (8, 3), (2, 5, 6, 4)])
def test_newton_schulz_is_about_the_orthogonal_factor(shape):
    """Same singular vectors, and singular values near 1, in each matrix of a batch."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    u, s, vt = torch.linalg.svd(x, full_matrices=False)
    found = orthogonalised(x, steps=9)
    values = u.mT @ found @ vt.mT
    torch.testing.assert_close(values, torch.diag_embed(values.diagonal(dim1=-2, dim2=-1)), atol=1e-9, rtol=0)
    assert ((values.diagonal(dim1=-2, dim2=-1) - 0.95).abs() < 0.3)[s > 0.05 * s.amax(-1, keepdim=True)].all()
    torch.testing.assert_close(orthogonalised(100 * x, steps=9), found, atol=1e-5, rtol=1e-5)


def test_muon_orthogonalises_the_blocks_matrices_and_leaves_the_rest_to_adamw():
    model, rest = Tiny(2), Tiny(2)
    before = model.blocks[0].weight.detach().clone()
    optimizer = StackedOptimizer(model, [0.1, 0.1], "muon", weight_decay=0.5)
    model.set_gradients(0)
    gradient = model.blocks[0].weight.grad.clone()
    optimizer.step()
    # the first Nesterov update is a multiple of the gradient; the matrix is 6 × 3, so √2 times
    expected = 0.95 * before - 0.1 * math.sqrt(2) * orthogonalised(gradient)
    torch.testing.assert_close(model.blocks[0].weight.detach(), expected, atol=1e-6, rtol=1e-5)
    steps(rest, StackedOptimizer(rest, [0.1, 0.1], weight_decay=0.5), num=1)
    assert torch.equal(model.embedding, rest.embedding)
    assert torch.equal(model.blocks[1].weight, rest.blocks[1].weight)
    assert torch.equal(model.blocks[0].bias, rest.blocks[0].bias)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimiser_descends(name):
    model = Tiny(2)
    optimizer = StackedOptimizer(model, [0.01, 0.02], name)

    def loss() -> torch.Tensor:
        return sum(p.square().sum() for p in model.parameters())

    start = loss().item()
    for _ in range(30):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    assert loss().item() < 0.95 * start


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_parameters_without_gradient_stay(name):
    model = Tiny(2)
    before = copy_of(model)
    StackedOptimizer(model, [0.1, 0.2], name).step()
    assert all(torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))
