"""CUDA graphs of steps: their logic with a graph that records on a CPU, and where there is a GPU the real ones."""

import contextlib
import itertools

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from src.config import RunConfig
from src.model import transformer
from src.training import loop
from src.training.capture import CapturedGradients as Captured
from src.training.capture import difference
from src.training.loop import Observer, train_stack

SMALL = {"num_train": 9 * 32 - 5, "num_epochs": 2, "batch_size": 32, "num_eval": 20, "embed_dim": 16}


class Recording(TorchDispatchMode):
    """Stands in for a CUDA graph: the operations of the capture, and a replay that runs them again on the memory of
    then, with everything that Python decided in between."""

    def __init__(self):
        super().__init__()
        self.operations = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        self.operations.append((function, args, kwargs or {}, out))
        return out

    def replay(self):
        with torch.no_grad():
            for function, args, kwargs, out in self.operations:
                given = [x.untyped_storage().data_ptr() for x in tree_leaves((args, kwargs)) if torch.is_tensor(x)]
                for old, new in zip(tree_leaves(out), tree_leaves(function(*args, **kwargs)), strict=True):
                    if torch.is_tensor(old) and old.untyped_storage().data_ptr() not in given:  # no view
                        old.copy_(new)


class Stream:
    def wait_stream(self, other):
        pass


@pytest.fixture
def _recorded(monkeypatch):
    """A CUDA of recordings. No size depends on the tokens, as on a GPU."""
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Recording)
    monkeypatch.setattr(torch.cuda, "graph", lambda graph, stream: graph)
    monkeypatch.setattr(transformer, "static_sizes", lambda tokens: True)


class Losses(Observer):
    def __init__(self):
        self.losses = []

    def on_step(self, step, loss, model):
        self.losses.append(loss.item())


def losses_of(configs: list[RunConfig], device: str = "cpu") -> np.ndarray:
    """The losses of each run of a stack, (runs, steps)."""
    seen = [Losses() for _ in configs]
    train_stack(configs, device, [[losses] for losses in seen])
    return np.array([losses.losses for losses in seen])


def use_graphs(monkeypatch) -> list[Captured]:
    """Let training on this CPU capture as it does on a GPU; what it captures with."""
    made, plain = [], loop.gradients_of

    def gradients_of(model, task, config, device):
        made.append(Captured(plain(model, task, config, device), model.parameters()))
        return made[-1]

    monkeypatch.setattr(loop, "gradients_of", gradients_of)
    return made


STACKS = [
    [{"task": "induction", "seed": seed, "lr": lr} for lr in (1e-3, 1e-2) for seed in (0, 1)],
    [{"task": "induction", "aux_loss_weight": 0.0, "positional_type": "no", "attention_type": "mlp_norm"}],
    [{"task": "classification", "optimizer": "muon", "seed": seed} for seed in (0, 1)],
    [{"task": "trigger", "attention_type": "entmax15", "optimizer": "momentum"}],
    [{"task": "classification", "attention_type": "kv_bias", "precision": "bf16"}],
]


@pytest.mark.usefixtures("_recorded")
@pytest.mark.parametrize("stack", STACKS)
def test_training_with_a_graph_is_training_without(stack, monkeypatch):
    """Over two epochs, whose last batches are smaller and run as they are."""
    configs = [RunConfig(**SMALL, **fields) for fields in stack]
    wanted = losses_of(configs)
    made = use_graphs(monkeypatch)
    found = losses_of(configs)
    (captured,) = made
    assert captured.usable
    assert captured.graph is not None
    assert captured.batches == 16
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


@pytest.mark.usefixtures("_recorded")
def test_a_graph_that_differs_is_not_used():
    """Python's own numbers are those of the capture ever after: here the number of the batch, which is a factor."""
    weight, numbers = torch.nn.Parameter(torch.ones(1)), itertools.count(1)

    def gradients(inputs, targets):
        losses = next(numbers) * weight * inputs.sum()
        weight.grad = None
        losses.sum().backward()
        return losses.detach()

    captured, inputs = Captured(gradients, [weight]), torch.ones(2, 3)
    assert [captured(inputs, inputs).item() for _ in range(2)] == [6, 12]
    with pytest.warns(UserWarning, match=r"step by step: a CUDA graph of the steps differs from them by 2\.5e-01$"):
        captured(inputs, inputs)  # records the third, and is compared with the fourth
    assert captured(inputs, inputs).item() == weight.grad.item() == 6 * 6


@pytest.mark.usefixtures("_recorded")
def test_what_cannot_be_recorded_is_run(monkeypatch):
    config = RunConfig(**SMALL)
    wanted = losses_of([config])
    made = use_graphs(monkeypatch)

    def graph(error):
        def refuse(*_, **__):
            raise error

        monkeypatch.setattr(torch.cuda, "graph", refuse)

    graph(RuntimeError("operation not permitted when stream is capturing\nand more"))
    with pytest.warns(UserWarning, match=r"cannot be recorded \(operation not permitted when stream is capturing\)$"):
        found = losses_of([config])
    assert not made[0].usable
    np.testing.assert_array_equal(found, wanted)
    graph(torch.OutOfMemoryError("CUDA out of memory"))  # which is for the stack to be cut
    with pytest.raises(torch.OutOfMemoryError):
        losses_of([config])


@pytest.mark.usefixtures("_recorded")
def test_code_of_the_users_own_is_run_step_by_step(tmp_path):
    (tmp_path / "my.py").write_text(
        "def own(q, k, mask):\n    return 0.5 * (q @ k.mT).sigmoid() * (1 if mask is None else mask)\n"
    )

    def kind(name: str) -> bool:
        return isinstance(
            loop.gradients_of(torch.nn.Linear(1, 1), None, RunConfig(attention_type=name), "cuda"), Captured
        )

    assert kind("softmax")
    assert not kind(f"{tmp_path / 'my.py'}:own")


def test_difference_is_relative_and_leaves_out_rounding_and_divergence():
    losses, large, tiny = torch.tensor([2.0, torch.nan]), torch.tensor([3.0, 4.0]), torch.tensor([1e-9])
    wanted = [losses, large, tiny, None]
    assert difference(wanted, wanted) == 0
    assert difference(wanted, [losses, large, -tiny, None]) < 1e-7
    assert difference(wanted, [losses + 0.5, large, tiny, None]) == pytest.approx(0.25)
    assert difference(wanted, [losses, large + torch.tensor([0.0, 0.05]), tiny, None]) == pytest.approx(0.01, rel=1e-5)
    assert difference(wanted, [losses, large, tiny + 0.05, None]) == pytest.approx(1.0)
    assert difference(wanted, [losses, large * torch.nan, tiny, None]) == float("inf")
    assert difference(wanted, [losses, large, None, tiny]) == float("inf")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU, as benchmarks/gpu.py does")
def test_on_a_gpu_training_is_that_of_a_cpu():
    for stack in STACKS:
        configs = [RunConfig(**SMALL, **fields) for fields in stack]
        np.testing.assert_allclose(losses_of(configs, "cuda"), losses_of(configs), rtol=1e-2)
