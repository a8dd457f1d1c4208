"""The training loop, for any task and for any number of runs at once: a single run is a stack of one."""

import dataclasses
import functools
import hashlib
import math
import time
from collections.abc import Iterable, Sequence

import torch
from torch import Generator, Tensor

from src.config import STACKABLE, RunConfig
from src.errors import ConfigError, require
from src.extensions import is_external
from src.model.cpu import keep_freed_memory
from src.model.transformer import Transformer
from src.optimizers import StackedOptimizer
from src.tasks import Task, find_task
from src.training.capture import CapturedGradients, Gradients
from src.training.measures import measures


class Observer:
    """Sees a run as it trains: a progress bar, a log, a recorder of attention rows."""

    def on_step(self, step: int, loss: Tensor, model: Transformer) -> None:
        """After training step `step` (1, 2, …), whose loss was `loss`."""

    def on_epoch(self, epoch: int, results: dict[str, float]) -> None:
        """After the evaluation that follows epoch `epoch`; epoch 0 is the start."""

    def on_end(self, state: str, summary: dict[str, float], error: str | None = None) -> None:
        """After the run, in whatever state (of the run log) it ended; error says why if not in finished."""


class DivergedError(Exception):
    """The loss, of training or of evaluation, became infinite or not a number."""


def stream(config: RunConfig, purpose: str) -> Generator:
    """The random numbers of one purpose of a run: they depend on nothing but its seed and the purpose."""
    digest = hashlib.sha256(f"{purpose} {config.seed}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def build_stack(configs: Sequence[RunConfig]) -> Transformer:
    """The untrained models of runs that differ in STACKABLE fields alone, as one stack. ConfigError if code of the
    user's own is another than when the runs were configured."""
    config = configs[0]
    require(
        config.source == config.own_source(),
        f"{config.task} or {config.attention_type} was edited since this run was configured; start a new run",
    )
    task = find_task(config.task)(*configs)
    return Transformer(
        task.num_tokens,
        task.num_classes,
        num_features=task.num_features,
        causal=task.causal,
        longest_row=task.num_positions,
        embed_dim=config.embed_dim,
        num_layers=config.num_layers,
        num_heads=config.num_heads,
        attention_type=config.attention_type,
        positional_type=config.positional_type,
        use_mlp=config.use_mlp,
        use_layernorm=config.use_layernorm,
        use_residual=config.use_residual,
        generators=[stream(member, "initialisation") for member in configs],
    )


def build_model(config: RunConfig) -> Transformer:
    """The untrained model of a run."""
    return build_stack([config])


def member_of(stack: Transformer, configs: Sequence[RunConfig], i: int) -> Transformer:
    """The model of run i of the stack, whose parameters are the stack's own memory."""
    if len(configs) == 1:
        return stack
    model = build_model(configs[i])
    for own, stacked in zip(model.parameters(), stack.parameters(), strict=True):
        own.data = stacked.data[i : i + 1]
    return model


def build_optimizer(model: Transformer, configs: Sequence[RunConfig]) -> StackedOptimizer:
    """The optimiser of a stack's runs, each with its own learning rate."""
    config = configs[0]
    lrs = [member.lr for member in configs]
    return StackedOptimizer(model, lrs, config.optimizer, config.weight_decay, config.beta2)


def num_steps(config: RunConfig) -> int:
    """Training steps in a run."""
    return config.num_epochs * math.ceil(config.num_train / config.batch_size)


def estimate_seconds(configs: Sequence[RunConfig], device: str = "cpu") -> float:
    """How long a stack of runs takes alone, judged by a few steps and evaluations of it."""
    config = configs[0]

    def seconds(steps: int, epochs: int = 1) -> float:
        began = time.perf_counter()
        batch = min(config.batch_size, config.num_train)  # what a step sees
        few = {"num_epochs": epochs, "batch_size": batch, "num_train": steps * batch}
        train_stack([dataclasses.replace(config, **few) for config in configs], device)
        return time.perf_counter() - began

    seconds(1)  # the first steps of a process are slow
    few = seconds(3)  # with all that a run does once, on a GPU its graph too
    step = max(seconds(9) - few, 0) / 6
    evaluation = max(seconds(3, epochs=3) - few - 6 * step, 0) / 2
    return few + (num_steps(config) - 3) * step + (config.num_epochs - 1) * evaluation


def choose_device(name: str) -> str:
    """`cpu` or `cuda` for `auto`, `cpu` or `cuda`; ConfigError where there is no such device."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    require(name != "cuda" or torch.cuda.is_available(), "device=cuda needs a CUDA GPU; use --device=cpu here")
    return name


def prepare_process() -> None:
    """One thread for each run, so that results do not depend on how many cores or workers there are."""
    torch.set_num_threads(1)
    keep_freed_memory()


def train(
    config: RunConfig, device: str = "cpu", observers: Iterable[Observer] = ()
) -> tuple[Transformer, dict[str, float]]:
    """Train and evaluate the run; the model and its summary: the last epoch's results and the final metrics.

    Raises DivergedError at the end of the first epoch whose loss is not finite, after telling the observers.
    """
    model, (outcome,) = train_stack([config], device, [observers])
    if isinstance(outcome, DivergedError):
        raise outcome
    return model, outcome


def train_stack(
    configs: Sequence[RunConfig], device: str = "cpu", observers: Sequence[Iterable[Observer]] | None = None
) -> tuple[Transformer, list[dict[str, float] | DivergedError]]:
    """Train and evaluate runs that differ in STACKABLE fields alone as one stack, each with observers of its own.

    Returns the stack's model and what became of each run: its summary as `train` returns it, or a
    DivergedError. A run that diverges ends at that epoch and harms no other: members share no number. Those of
    one learning rate should be neighbours (see StackedOptimizer). Raises ConfigError for runs that are no stack, and
    for a precision that the device lacks.
    """
    config = configs[0]
    check_stack(configs)
    check_precision(config, device)
    task = find_task(config.task)(*configs)
    of_seed = list({member.seed: member for member in configs}.values())  # runs of one seed share their data
    seeds = [member.seed for member in of_seed]
    which = torch.tensor([seeds.index(member.seed) for member in configs])[:, None]  # (S, 1)

    def sequences(num: int, purpose: str) -> list[Tensor]:
        """Inputs and targets of every seed, one after another: (seeds · num, …) each."""
        drawn = [task.sequences(num, stream(member, purpose)) for member in of_seed]
        return [torch.cat(parts).to(device) for parts in zip(*drawn, strict=True)]

    inputs, targets = sequences(config.num_train, "training data")
    places = (which * config.num_eval + torch.arange(config.num_eval)).to(device)  # (S, sequences)
    held_out = [x[places] for x in sequences(config.num_eval, "evaluation data")]
    model = build_stack(configs).to(device)
    optimizer = build_optimizer(model, configs)
    on_batch = gradients_of(model, task, config, device)
    orders = [stream(member, "order") for member in of_seed]
    members = Members(configs, model, observers or [()] * len(configs))

    evaluated, weights = evaluate(model, task, *held_out)
    members.end_epoch(0, 0, [{}] * len(configs), evaluated)
    step = 0
    for epoch in range(1, config.num_epochs + 1):
        if not members.running:
            break
        total = torch.zeros(len(configs), device=device)
        order = torch.stack([torch.randperm(config.num_train, generator=order) for order in orders])[which[:, 0]]
        for batch in (which * config.num_train + order).to(device).split(config.batch_size, dim=1):
            losses = on_batch(inputs[batch], targets[batch])
            optimizer.step()
            total += losses * batch.shape[1]
            step += 1
            members.end_step(step, losses)
        evaluated, weights = evaluate(model, task, *held_out)
        train_losses = (total / config.num_train).tolist()
        members.end_epoch(epoch, step, [{"train/loss": loss} for loss in train_losses], evaluated)
    if members.running:
        generators = [stream(member, "label mixing") for member in configs]
        with torch.no_grad():
            final = task.final_metrics(model, weights, *held_out, generators)
            measured = measures(model, task, held_out[0])
        members.finish([one | other for one, other in zip(final, measured, strict=True)])
    return model, members.outcomes


class Members:
    """The runs of a stack: who is still running, what each has to show, and what became of it."""

    def __init__(self, configs: Sequence[RunConfig], model: Transformer, observers: Sequence[Iterable[Observer]]):
        self.observers = [list(own) for own in observers]
        self.running = list(range(len(configs)))
        self.results: list[dict[str, float]] = [{} for _ in configs]
        self.outcomes: list[dict[str, float] | DivergedError] = [{} for _ in configs]
        # Only those who look at steps are shown them: the log of a large stack would make a GPU wait.
        self.watching = [
            (i, observer, member_of(model, configs, i))
            for i, own in enumerate(self.observers)
            for observer in own
            if type(observer).on_step is not Observer.on_step
        ]

    def end_step(self, step: int, losses: Tensor) -> None:
        for i, observer, model in self.watching:
            if i in self.running:
                observer.on_step(step, losses[i], model)

    def end_epoch(self, epoch: int, step: int, trained: list[dict[str, float]], evaluated: list[dict[str, float]]):
        """Tell observers, and end the runs whose loss, in training or evaluation, is not finite."""
        for i in list(self.running):
            self.results[i] = {"epoch": epoch, "step": step} | trained[i] | evaluated[i]
            for observer in self.observers[i]:
                observer.on_epoch(epoch, self.results[i])
            for loss in (trained[i].get("train/loss", 0.0), evaluated[i]["eval/loss"]):
                if not math.isfinite(loss) and i in self.running:
                    self.outcomes[i] = DivergedError(f"the loss of epoch {epoch} is {loss}")
                    self._end(i, "diverged", self.results[i], str(self.outcomes[i]))

    def finish(self, final: list[dict[str, float]]) -> None:
        for i in list(self.running):
            self.outcomes[i] = self.results[i] | final[i]
            self._end(i, "finished", self.outcomes[i])

    def _end(self, i: int, state: str, summary: dict[str, float], error: str | None = None) -> None:
        self.running.remove(i)
        for observer in self.observers[i]:
            observer.on_end(state, summary, error)


def check_stack(configs: Sequence[RunConfig]) -> None:
    """ConfigError if the runs differ in more than STACKABLE fields."""
    for member in configs:
        for name, value in member.to_dict().items():
            first = getattr(configs[0], name)
            require(
                name in STACKABLE or value == first,
                f"{name}={first} and {name}={value} cannot be in one stack; its runs may differ in "
                f"{', '.join(STACKABLE)} alone",
            )


def check_own_task(config: RunConfig) -> None:
    """ConfigError unless a task of the user's own gives what the loop needs of it, on a few sequences."""
    if not is_external(config.task):
        return
    few = dataclasses.replace(config, num_train=4, num_eval=4, batch_size=2, num_epochs=1)
    try:
        _, (outcome,) = train_stack([few])
    except Exception as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise ConfigError(f"task={config.task} fails on a few sequences ({reason}); mend it") from error
    accuracy = find_task(config.task).accuracy
    require(
        isinstance(outcome, DivergedError) or accuracy in outcome,
        f"task={config.task} names {accuracy} as its accuracy but does not log it; return it from `accuracies`",
    )


def check_precision(config: RunConfig, device: str) -> None:
    require(
        config.precision != "tf32" or device == "cuda",
        "precision=tf32 needs a CUDA GPU; use --precision=float32 here, or --device=cuda where there is one",
    )


def gradients_of(model: Transformer, task: Task, config: RunConfig, device: str) -> Gradients:
    """`gradients` as a function of inputs (S, B, T) and targets: on a GPU as a CUDA graph, except where code of the
    user's own takes part, which may do something else with each batch."""
    function = functools.partial(gradients, model, task, config.precision)
    own = is_external(config.task) or is_external(config.attention_type)
    if device != "cuda" or own:
        return function
    # Wrong numbers differ by about 1. In bf16 a GPU sums some gradients in the order that its threads come in, and two
    # evaluations of a batch differ by up to 0.03.
    tolerance = 0.1 if config.precision == "bf16" else 1e-3
    return CapturedGradients(function, model.parameters(), tolerance)


def gradients(model: Transformer, task: Task, precision: str, inputs: Tensor, targets: Tensor) -> Tensor:
    """The loss of each member on its batch, inputs (S, B, T): (S,), detached. The model's parameters have its gradients
    afterwards."""
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    with torch.autocast(inputs.device.type, torch.bfloat16, enabled=precision == "bf16"):
        logits, _ = model(inputs, task.read)
    losses = task.loss(logits.to(model.head.weight.dtype), targets)
    model.zero_grad()
    losses.sum().backward()  # each member's gradient is that of its own loss
    torch.set_float32_matmul_precision("highest")  # for evaluation
    return losses.detach()


@torch.no_grad()
def evaluate(
    model: Transformer, task: Task, inputs: Tensor, targets: Tensor
) -> tuple[list[dict[str, float]], list[Tensor]]:
    """Loss, accuracies and attention entropies of each member in float32, and the attention weights of each
    layer, (S, B, H, R, T); inputs (S, B, T)."""
    logits, weights = model(inputs, task.evaluated)
    measured = {"loss": task.loss(logits, targets)} | task.accuracies(logits, targets)
    values = torch.stack(list(measured.values()), dim=1).tolist()  # one wait for a GPU
    named = [{f"eval/{name}": value for name, value in zip(measured, row, strict=True)} for row in values]
    return [one | other for one, other in zip(named, task.attention_entropies(weights), strict=True)], weights
