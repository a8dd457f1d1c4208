"""Look inside models: trained ones that are kept, and attention rows while a model trains."""

import json
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from src import metrics
from src.config import RunConfig
from src.extensions import short_name
from src.model.transformer import Transformer
from src.runs import ROOT
from src.runs.provenance import git_commit
from src.tasks import find_task
from src.training.loop import Observer, build_model, prepare_process, stream, train, train_stack
from src.training.progress import ProgressBar

MODELS = ROOT / "results" / "models"


def held_out(config: RunConfig) -> tuple[Tensor, Tensor]:
    """The evaluation sequences of a run, as the task's `sequences` gives them: inputs and targets."""
    return find_task(config.task)(config).sequences(config.num_eval, stream(config, "evaluation data"))


def kept_name(config: RunConfig) -> str:
    """What the names of the files of such models begin with."""
    return f"{short_name(config.task)}_{short_name(config.attention_type)}"


def path_of(config: RunConfig, folder: Path) -> Path:
    """Where `keep` writes the model of a run."""
    return folder / f"{kept_name(config)}_{config.hash}.safetensors"


def keep(model: Transformer, config: RunConfig, summary: dict[str, float], folder: Path) -> None:
    """Write the trained model of a run, with its config and summary, where `trained` finds it."""
    folder.mkdir(parents=True, exist_ok=True)
    about = {"config": json.dumps(config.to_dict()), "summary": json.dumps(summary), "code": str(git_commit())}
    path = path_of(config, folder)
    unfinished = path.with_suffix(f".{os.getpid()}.part")
    # of a stack's member only its own part of the stack's memory
    save_file({name: value.detach().cpu().clone() for name, value in model.state_dict().items()}, unfinished, about)
    unfinished.replace(path)


def trained(config: RunConfig, folder: Path | str = MODELS) -> tuple[Transformer, dict[str, float]]:
    """The trained model of a run and the run's summary: from `folder` if it is kept there, as by `train.py
    --keep_models`, else trained now (minutes for the paper's induction runs) and kept. Delete the file to train it
    again."""
    folder = Path(folder)
    for path in folder.glob(f"{kept_name(config)}_*.safetensors"):
        with safe_open(path, framework="pt") as file:
            about = file.metadata()
        # not by the hash in its name: a field that RunConfig has got since has its default
        if RunConfig.from_dict(json.loads(about["config"])) == config:
            model = build_model(config)
            model.load_state_dict(load_file(path))
            return model, json.loads(about["summary"])
    prepare_process()
    model, summary = train(config, observers=[ProgressBar(config)])
    keep(model, config, summary, folder)
    return model, summary


class ModelKeeper(Observer):
    """Keeps the model of a run that finishes. A disk that is full costs the file alone: the run goes on."""

    def __init__(self, config: RunConfig, folder: Path):
        self.config, self.folder, self.model = config, folder, None

    def on_step(self, step: int, loss: Tensor, model: Transformer) -> None:
        self.model = model

    def on_end(self, state: str, summary: dict[str, float], error: str | None = None) -> None:
        if state != "finished":
            return
        try:
            keep(self.model, self.config, summary, self.folder)
        except (OSError, SafetensorError) as reason:
            print(f"the model of {self.config.title} is not kept ({reason}); its results are", file=sys.stderr)


def count_unkept(configs: Iterable[RunConfig], folder: Path) -> int:
    """How many of the runs have no file of `keep` in the folder."""
    return sum(not path_of(config, folder).exists() for config in configs)


@torch.no_grad()
def attention_weights(model: Transformer, inputs: Tensor) -> Tensor:
    """Attention weights (layers, B, H, T, T) of a model on inputs (B, T)."""
    _, weights = model(inputs)
    return torch.stack(weights)


def token_names(ids: Tensor, vocab_size: int) -> list[str]:
    """The ids (T,) of an induction sequence in words: BOS, the number of each token, and the query's with a ?."""
    return ["BOS", *(f"{i}" if i < vocab_size else f"{i - vocab_size}?" for i in ids[1:].tolist())]


class WeightsRecorder(Observer):
    """Records the last layer's weights on fixed inputs (B, T) after every training step.

    `weights` is then (steps, B, H, T, T).
    """

    def __init__(self, inputs: Tensor):
        self.inputs, self._weights = inputs, []

    @torch.no_grad()
    def on_step(self, step: int, loss: Tensor, model: Transformer) -> None:
        self._weights.append(model(self.inputs)[1][-1])

    @property
    def weights(self) -> Tensor:
        return torch.stack(self._weights)


class ClsRecorder(Observer):
    """Records the CLS row of the last layer for fixed inputs (B, T) after every training step.

    `rows` is then (steps, B, H, T).
    """

    def __init__(self, inputs: Tensor):
        self.inputs, self._rows = inputs, []

    @torch.no_grad()
    def on_step(self, step: int, loss: Tensor, model: Transformer) -> None:
        _, weights = model(self.inputs, slice(-1, None))
        self._rows.append(weights[-1][:, :, -1])

    @property
    def rows(self) -> Tensor:
        return torch.stack(self._rows)


def entropy_and_order(configs: Sequence[RunConfig], sequences: int = 200) -> tuple[np.ndarray, np.ndarray]:
    """Train classification runs that differ in seeds, as one stack; how their last layer's CLS rows on some evaluation
    sequences change with every step: their normalised entropy, and the share of pairs of keys in the order of the end
    (`metrics.order_kept`), mean over heads, (runs, steps) each."""
    recorders = [ClsRecorder(held_out(config)[0][:sequences]) for config in configs]
    train_stack(configs, observers=[[recorder] for recorder in recorders])
    entropies = [metrics.row_entropy(recorder.rows).mean(-1) for recorder in recorders]
    orders = [metrics.order_kept(recorder.rows) for recorder in recorders]
    return torch.stack(entropies).numpy(), torch.stack(orders).numpy()


def one_of_each(labels: Tensor) -> Tensor:
    """Where each label 0, 1, … stands first in labels (B,)."""
    return torch.stack([(labels == label).nonzero()[0, 0] for label in labels.unique()])
