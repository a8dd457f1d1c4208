"""The bridge to the transformers: does the model say which token a trained head settles on, and when?

    uv run python -m src.value_softmax.bridge          # trains and writes results/bridge.npz: some minutes

One layer, one head, no MLP, no LayerNorm, classification at vocabulary 41: a sequence holds all ten tokens of its
label, so that there are four rows of attention, one for each label, over 41 keys: CLS and 40 tokens. Logits are
o + Σ_i s_i V_i, V_i being key i's value in logits: the value-softmax model with four rows, but that scores and values
are products of parameters, and CLS is in all rows. As there are but four sequences up to order, training is on them,
full batch. All seeds train side by side.

Three rungs, from one start, under one optimiser:

- the transformer;
- the transformer linearised in its parameters at the start: scores and values move by the kernel of the start;
- the model: scores and values are free. How far one step of the optimiser moves a product, which it cannot know, is
  read off the transformer's first step, one number for the scores and one for the values. What every key's sequence
  has alike, o, stays.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from src.config import RunConfig
from src.model.transformer import Transformer
from src.optimizers import StackedOptimizer
from src.runs import ROOT
from src.training.inspection import held_out
from src.training.loop import Observer, build_stack, prepare_process, train_stack
from src.value_softmax.descent import log_spaced
from src.value_softmax.trajectory import entropy

RESULTS = ROOT / "results" / "bridge.npz"
BOS_RESULTS = ROOT / "results" / "bridge_induction.npz"
SETTING = {"task": "classification", "num_layers": 1, "num_heads": 1, "vocab_size": 41, "weight_decay": 0.0}
SETTING |= {"use_mlp": False, "use_layernorm": False, "attention_type": "softmax"}
SEEDS, TUNING_SEEDS, STEPS = range(12), range(100, 103), 400
RATES = {"sgd": (0.01, 0.03, 0.1), "momentum": (0.001, 0.003, 0.01)}  # three times more diverges
OPTIMIZERS = {
    "AdamW, 1e-3": {"optimizer": "adamw", "lr": 1e-3},
    "AdamW, 1e-3, β₂ = 0.95": {"optimizer": "adamw", "lr": 1e-3, "beta2": 0.95},
    "AdamW, 3e-5": {"optimizer": "adamw", "lr": 3e-5},
    "sign, 1e-3": {"optimizer": "sign", "lr": 1e-3},
    "momentum": {"optimizer": "momentum"},
    "SGD": {"optimizer": "sgd"},
}
STARTS = {"as initialised": False, "from zero scores": True}


class State:
    """S members' scores a (S, keys), values V (S, keys, labels) in logits, and the logits' rest o (S, labels)."""

    def __init__(self, a: Tensor, V: Tensor, o: Tensor):
        self.a, self.V, self.o = a, V, o

    def weights(self, rows: Tensor) -> Tensor:
        """The rows of attention (S, labels, T)."""
        return self.a[:, rows].softmax(-1)

    def logits(self, rows: Tensor) -> Tensor:
        """Logits at CLS of each label's sequence (S, labels, labels)."""
        return self.o[:, None] + torch.einsum("slt,sltc->slc", self.weights(rows), self.V[:, rows])

    def loss(self, rows: Tensor) -> Tensor:
        """Mean cross-entropy over the labels, (S)."""
        log_p = self.logits(rows).log_softmax(-1)
        return -log_p.diagonal(dim1=1, dim2=2).mean(-1)

    def u(self, rows: Tensor) -> Tensor:
        """u (S, labels, T): each value along the direction that raises the label's probability, 1 in its own logit."""
        p = self.logits(rows).softmax(-1)
        g = torch.eye(p.shape[-1]) - p
        return torch.einsum("sltc,slc->slt", self.V[:, rows], g / g.diagonal(dim1=1, dim2=2)[..., None])


def rows_of(config: RunConfig) -> Tensor:
    """The four sequences that there are, up to order: each label's tokens and CLS, (labels, T)."""
    group = (config.vocab_size - 1) // config.num_labels
    return F.pad(torch.arange(1, config.vocab_size).view(config.num_labels, group), (0, 1))


def state_of(stack: Transformer) -> State:
    """The state of a stack of models of the setting above."""
    attention, x = stack.blocks[0].attention, stack.token_embedding.weight  # (S, keys, C)
    S, _, C = x.shape
    q = attention.queries(x[:, 0])
    k, v = (layer(x.flatten(0, 1)).unflatten(0, (S, -1)) for layer in (attention.keys, attention.values))
    head = stack.head.weight.mT  # (S, C, labels)
    after = x[:, 0] + attention.output.bias  # CLS and what every key adds alike
    return State(
        torch.einsum("snc,sc->sn", k, q) / C**0.5,
        v @ attention.output.weight.mT @ head,
        torch.einsum("sc,scl->sl", after, head) + stack.head.bias,
    )


def started(configs: Sequence[RunConfig], from_zero: bool = False) -> Transformer:
    """The untrained transformers; `from_zero` with queries of 0, so that all scores are 0, as the theory has them."""
    stack = build_stack(configs)
    if from_zero:
        query = stack.blocks[0].attention.query
        nn.init.zeros_(query.weight)
        nn.init.zeros_(query.bias)
    return stack


class Linearised(nn.Module):
    """A stack's state to first order in its parameters, from their start."""

    def __init__(self, stack: Transformer):
        super().__init__()
        self.start = {name: parameter.detach() for name, parameter in stack.named_parameters()}
        self.moved = nn.ParameterList([torch.zeros_like(x) for x in self.start.values()])
        self.stack = [stack]  # not a submodule: its parameters stay

    def state(self) -> State:
        """f(θ₀) + f'(θ₀) (θ - θ₀)."""

        def parts(parameters):
            state = torch.func.functional_call(_StateOf(self.stack[0]), _prefixed(parameters), ())
            return state.a, state.V, state.o

        moved = dict(zip(self.start, self.moved, strict=True))
        start, change = torch.func.jvp(parts, (self.start,), (moved,))
        return State(*(x + dx for x, dx in zip(start, change, strict=True)))


class _StateOf(nn.Module):
    def __init__(self, stack):
        super().__init__()
        self.inner = stack

    def forward(self):
        return state_of(self.inner)


def _prefixed(parameters):
    return {f"inner.{name}": x for name, x in parameters.items()}


class Model(nn.Module):
    """The value-softmax model: free scores and values, in units in which a step moves them as the transformers'."""

    def __init__(self, start: State, speed_a: Tensor, speed_V: Tensor):
        super().__init__()
        self.start, self.speed_a, self.speed_V = start, speed_a[:, None], speed_V[:, None, None]
        self.a, self.V = nn.Parameter(torch.zeros_like(start.a)), nn.Parameter(torch.zeros_like(start.V))

    def state(self) -> State:
        """The start and what has been moved, scaled."""
        return State(self.start.a + self.speed_a * self.a, self.start.V + self.speed_V * self.V, self.start.o)


def optimizer_of(model: nn.Module, configs: Sequence[RunConfig]) -> StackedOptimizer:
    """The runs' optimiser on a stack's parameters."""
    config = configs[0]
    rates = [member.lr for member in configs]
    return StackedOptimizer(model, rates, config.optimizer, config.weight_decay, config.beta2)


def speeds(configs: Sequence[RunConfig], from_zero: bool = False) -> tuple[Tensor, Tensor]:
    """How far a step moves scores and values, (S) each, by the transformers' first step.

    Of each the part of the loss's first-order fall is matched. A step of lr on x in z = z(0) + κ x lowers it by
    lr κ Σ|g| under sign descent and Adam, whose first step is a sign, and by lr κ² Σg² under descent, g = ∂L/∂z.
    """
    stack, rows = started(configs, from_zero), rows_of(configs[0])
    with torch.no_grad():
        before = state_of(stack)
    leaves = State(*(x.clone().requires_grad_() for x in (before.a, before.V, before.o)))
    leaves.loss(rows).sum().backward()
    optimizer = optimizer_of(stack, configs)
    state_of(stack).loss(rows).sum().backward()
    optimizer.step()
    with torch.no_grad():
        after = state_of(stack)
    signed = configs[0].optimizer in ("adamw", "sign")

    def speed(g, moved):
        fall = -(g * moved).flatten(1).sum(1).clamp(max=0) / configs[0].lr
        return fall / g.abs().flatten(1).sum(1) if signed else (fall / g.square().flatten(1).sum(1)).sqrt()

    return speed(leaves.a.grad, after.a - before.a), speed(leaves.V.grad, after.V - before.V)


def descended(
    model: nn.Module, state: Callable[[], State], configs: Sequence[RunConfig], steps: int
) -> tuple[Tensor, Tensor]:
    """Rows of attention before each of `steps` full-batch steps, (steps, S, labels, T), and the last losses (S)."""
    rows, weights, optimizer = rows_of(configs[0]), [], optimizer_of(model, configs)
    for _ in range(steps):
        optimizer.zero_grad()
        now = state()
        losses = now.loss(rows)
        losses.sum().backward()
        weights.append(now.weights(rows).detach())
        optimizer.step()
    return torch.stack(weights), losses.detach()


def rungs(configs: Sequence[RunConfig], steps: int, from_zero: bool = False) -> dict[str, Tensor]:
    """The rows of attention of transformer, linearised and model, (steps, S, labels, T) each."""
    stack = started(configs, from_zero)
    linear = Linearised(started(configs, from_zero))
    with torch.no_grad():
        start = state_of(stack)
    model = Model(start, *speeds(configs, from_zero))
    return {
        "transformer": descended(stack, lambda: state_of(stack), configs, steps)[0],
        "linearised": descended(linear, linear.state, configs, steps)[0],
        "model": descended(model, model.state, configs, steps)[0],
    }


def tuned(optimizer: str) -> float:
    """The learning rate of RATES with the lowest mean loss after STEPS, on other seeds."""
    losses = {}
    for lr in RATES[optimizer]:
        configs = [RunConfig(**SETTING, optimizer=optimizer, lr=lr, seed=seed) for seed in TUNING_SEEDS]
        stack = started(configs)
        losses[lr] = float(descended(stack, lambda stack=stack: state_of(stack), configs, STEPS)[1].mean())
    return min(losses, key=lambda lr: np.nan_to_num(losses[lr], nan=np.inf))


def follow(configs: Sequence[RunConfig], steps: int, from_zero: bool = False) -> dict[str, np.ndarray]:
    """Of the start: a, u (S, labels, T). Of each rung: entropy (records, S, labels), as a share of log T, after `steps`
    (records), and the winner (S, labels)."""
    rows, kept = rows_of(configs[0]), log_spaced(steps - 1, 60)
    with torch.no_grad():
        start = state_of(started(configs, from_zero))
        result = {"a": start.a[:, rows].numpy(), "u": start.u(rows).numpy(), "steps": kept}
    result["speeds"] = torch.stack(speeds(configs, from_zero)).numpy()
    for name, weights in rungs(configs, steps, from_zero).items():
        shares = entropy(weights[kept].double().numpy()) / np.log(weights.shape[-1])
        result |= {f"{name}/entropy": shares.astype(np.float32), f"{name}/winner": weights[-1].argmax(-1).numpy()}
    return result


def measure(path: Path = RESULTS) -> None:
    """Follow every optimiser from both starts and write the arrays, as `optimiser/start/quantity`."""
    prepare_process()
    arrays = {}
    for name, fields in tqdm(OPTIMIZERS.items(), unit="optimiser"):
        lr = fields.get("lr") or tuned(fields["optimizer"])
        configs = [RunConfig(**SETTING | fields | {"lr": lr}, seed=seed) for seed in SEEDS]
        for start, from_zero in STARTS.items():
            followed = follow(configs, STEPS, from_zero) | {"lr": np.array(lr)}
            arrays |= {f"{name}/{start}/{key}": value for key, value in followed.items()}
    unfinished = path.with_suffix(".part.npz")
    np.savez_compressed(unfinished, **arrays)
    unfinished.replace(path)


class BosRecorder(Observer):
    """BOS in the second layer of an induction run, of fixed sequences (B, T), after each step: the mean weight `share`
    (steps, H), and whether it is the key of the largest weight, `largest` (steps, H).

    From the rows of the published sink score; a key's weight counts relative to the mean of the keys that a row sees.
    """

    def __init__(self, inputs: Tensor):
        self.inputs, self.share, self.largest = inputs, [], []

    @torch.no_grad()
    def on_step(self, step: int, loss: Tensor, model: Transformer) -> None:
        weights = model(self.inputs)[1][1][:, :, 1:-2]  # (B, H, rows, T)
        seen = torch.arange(weights.shape[-1]) <= torch.arange(1, weights.shape[2] + 1)[:, None]
        relative = (weights * seen.sum(1, keepdim=True)).sum((0, 2)) / seen.sum(0).clamp(min=1)
        self.share.append(weights[..., 0].mean((0, 2)).numpy())
        self.largest.append((relative.argmax(-1) == 0).numpy())


def follow_bos(configs: Sequence[RunConfig], sequences: int = 64) -> dict[str, np.ndarray]:
    """BOS's `share` and whether it is `largest`, (steps, S, H), of induction runs while they train."""
    recorders = [BosRecorder(held_out(config)[0][:sequences]) for config in configs]
    train_stack(configs, observers=[[recorder] for recorder in recorders])
    return {name: np.stack([np.stack(getattr(r, name)) for r in recorders], 1) for name in ("share", "largest")}


def measure_bos(path: Path = BOS_RESULTS) -> None:
    """Follow five runs of induction's main setting through their first 200 steps, and write the arrays."""
    prepare_process()
    setting = {"task": "induction", "positional_type": "add", "num_train": 200 * 256, "num_epochs": 1}
    arrays = follow_bos([RunConfig(**setting, seed=seed) for seed in range(5)])
    unfinished = path.with_suffix(".part.npz")
    np.savez_compressed(unfinished, **arrays)
    unfinished.replace(path)


def load(path: Path = RESULTS) -> dict[tuple[str, str], dict[str, np.ndarray]]:
    """What `measure` wrote, by optimiser and start."""
    followed = {}
    with np.load(path) as arrays:
        for name in arrays.files:
            optimizer, start, quantity = name.split("/", 2)
            followed.setdefault((optimizer, start), {})[quantity] = arrays[name]
    return followed


def won_by(followed: dict[str, np.ndarray], rung: str, place: np.ndarray) -> np.ndarray:
    """Per seed the share of rows whose winner on that rung is `place` (S, labels): (S)."""
    return (followed[f"{rung}/winner"] == place).mean(1)


if __name__ == "__main__":
    measure()
    measure_bos()
