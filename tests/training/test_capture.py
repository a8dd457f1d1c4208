"""CUDA graphs of steps: their logic with a graph that records on a CPU, and where there is a GPU the real ones."""

import contextlib
import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from src.config import RunConfig
from src.model import transformer
from src.training import capture, loop
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
    monkeypatch.setattr(capture, "recording_stream", Stream)
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
        made.append(Captured(plain(model, task, config, device), model.parameters(), 1e-3))
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


def on_numbers(python: Callable[[torch.Tensor], tuple[float, float]]) -> tuple[Captured, torch.nn.Parameter]:
    """Losses `a w Σ inputs` and gradients b times theirs, (a, b) what Python makes of the inputs; and w, which is 1."""
    weight = torch.nn.Parameter(torch.ones(1))

    def gradients(inputs, targets):
        a, b = python(inputs)
        losses = a * weight * inputs.sum()
        weight.grad = None
        (b * losses).sum().backward()
        return losses.detach()

    return Captured(gradients, [weight], 1e-3), weight


@pytest.mark.usefixtures("_recorded")
def test_a_graph_is_all_that_runs_in_the_end():
    calls = itertools.count()
    captured, weight = on_numbers(lambda inputs: (next(calls) >= 0, 1))
    inputs = [torch.full((2, 3), float(i)) for i in range(10)]
    assert [captured(x, x).item() for x in inputs] == [6 * i for i in range(10)]
    assert next(calls) == capture.WARM_UP + 1 + capture.COMPARED
    with torch.no_grad():
        weight.fill_(2)
    assert captured(inputs[1], inputs[1]).item() == 12
    assert weight.grad.item() == 6
    assert captured(inputs[1][:1], inputs[1][:1]).item() == 6  # of another size
    assert captured(inputs[3], inputs[3]).item() == 36


WRONG = {  # what Python decides is decided once, in the recording
    "both": lambda numbers, inputs: (next(numbers), 1),
    "gradients alone": lambda numbers, inputs: (1, next(numbers)),
    "what the inputs are": lambda numbers, inputs: (inputs.sum().item(), 1),
}


@pytest.mark.usefixtures("_recorded")
@pytest.mark.parametrize("kind", WRONG)
def test_a_graph_that_differs_is_not_used(kind):
    numbers, batches = itertools.count(1), [torch.full((2, 3), 1.0 + i) for i in range(5)]
    captured, weight = on_numbers(lambda inputs: WRONG[kind](numbers, inputs))
    for batch in batches[: capture.WARM_UP]:
        captured(batch, batch)
    with pytest.warns(UserWarning, match="training goes on step by step: a CUDA graph of the steps differs from them"):
        captured(batches[2], batches[2])
    batch = batches[4]
    found = captured(batch, batch).item()
    numbers = itertools.count(next(numbers) - 1)
    a, b = WRONG[kind](numbers, batch)
    assert (found, weight.grad.item()) == (a * 30, a * b * 30)
    assert not captured.usable


@pytest.mark.usefixtures("_recorded")
def test_a_copy_of_the_parameters_is_found_out():
    """On the second batch, before which they have changed."""
    weight, copy = torch.nn.Parameter(torch.ones(1)), {}

    def gradients(inputs, targets):
        losses = (copy.get("w", weight) * inputs).sum()[None]
        weight.grad = torch.ones(1)
        return losses.detach()

    captured, inputs = Captured(gradients, [weight], 1e-3), torch.ones(2, 3)
    for step in range(6):
        copy.clear()
        if step == capture.WARM_UP:
            copy["w"] = weight.detach().clone()
        with torch.no_grad():
            weight.fill_(1 + (step > capture.WARM_UP))
        if step == capture.WARM_UP + 1:
            with pytest.warns(UserWarning, match="differs from them"):
                found = captured(inputs, inputs)
        else:
            found = captured(inputs, inputs)
        assert found.item() == 6 * weight.item()


@pytest.mark.usefixtures("_recorded")
@pytest.mark.parametrize("when", ["at its beginning", "in its middle", "at its end, of its middle"])
def test_what_cannot_be_recorded_is_run(when, monkeypatch):
    """An error that a recording ends with hides the one in its middle."""
    config = RunConfig(**SMALL)
    wanted = losses_of([config])
    made = use_graphs(monkeypatch)

    def failing(error: Exception):
        @contextlib.contextmanager
        def graph(graph, stream):
            if when == "at its beginning":
                raise error
            try:
                yield
                raise error
            except Exception:
                if when == "in its middle":
                    raise
                raise RuntimeError("failed due to a previous error during capture")  # noqa: B904

        monkeypatch.setattr(torch.cuda, "graph", graph)

    failing(RuntimeError("operation not permitted when stream is capturing\nand more"))
    with pytest.warns(UserWarning, match=r"cannot be recorded \(operation not permitted when stream is capturing\)$"):
        found = losses_of([config])
    assert not made[0].usable
    np.testing.assert_array_equal(found, wanted)
    failing(torch.OutOfMemoryError("CUDA out of memory"))  # which is for the stack to be cut
    with pytest.raises(torch.OutOfMemoryError):
        losses_of([config])


@pytest.mark.usefixtures("_recorded")
def test_a_mistake_of_ours_is_no_reason_to_go_on():
    calls = itertools.count(1)
    captured, _ = on_numbers(lambda inputs: (1, 1) if next(calls) <= capture.WARM_UP else None)
    inputs = torch.ones(1)
    for _ in range(capture.WARM_UP):
        captured(inputs, inputs)
    with pytest.raises(TypeError):
        captured(inputs, inputs)


OWN = """
from src.tasks import Induction

def own(q, k, mask):
    w = (q @ k.mT).sigmoid()
    return w if mask is None else w * mask

class Mine(Induction):
    pass
"""


@pytest.mark.usefixtures("_recorded")
def test_code_of_the_users_own_is_run_step_by_step(tmp_path):
    path = tmp_path / "my.py"
    path.write_text(OWN)

    def on_gpu(**fields):
        return loop.gradients_of(torch.nn.Linear(1, 1), None, RunConfig(**fields), "cuda")

    assert isinstance(on_gpu(), Captured)
    assert on_gpu(precision="bf16").tolerance > 10 * on_gpu().tolerance
    assert not isinstance(on_gpu(attention_type=f"{path}:own"), Captured)
    assert not isinstance(on_gpu(task=f"{path}:Mine"), Captured)


def test_difference_is_relative_and_leaves_out_rounding_and_divergence():
    """Of two members, one of which has diverged; the keys' bias has gradients of rounding alone."""
    losses, large = torch.tensor([2.0, torch.nan]), torch.tensor([[3.0, 4.0], [1e30, 1e30]])
    bias = torch.tensor([[1e-9], [0.0]])
    wanted = [losses, large, bias, None]
    assert difference(wanted, wanted) == 0
    assert difference(wanted, [losses, large, -bias, None]) < 1e-7
    assert difference(wanted, [losses + 0.5, large, bias, None]) == pytest.approx(0.25)
    assert difference(wanted, [losses, large + torch.tensor([0.0, 0.05]), bias, None]) == pytest.approx(0.01, rel=1e-5)
    assert difference(wanted, [losses, large, bias + 0.05, None]) == pytest.approx(1.0)
    assert difference(wanted, [losses, large * torch.nan, bias, None]) == float("inf")
    assert difference(wanted, [losses, large, None, bias]) == float("inf")


@pytest.mark.filterwarnings("error:training goes on step by step")
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU, as benchmarks/gpu.py does")
def test_on_a_gpu_training_is_that_of_a_cpu():
    for stack in STACKS:
        configs = [RunConfig(**SMALL, **fields) for fields in stack]
        np.testing.assert_allclose(losses_of(configs, "cuda"), losses_of(configs), rtol=1e-2)
