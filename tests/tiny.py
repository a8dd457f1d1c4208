"""Runs small enough for tests."""

from typing import Any

from src.config import RunConfig

SIZES = {"embed_dim": 16, "num_layers": 2, "num_heads": 2, "use_mlp": True, "use_layernorm": True, "lr": 1e-3}
SIZES |= {"num_train": 256, "num_eval": 64, "batch_size": 64, "num_epochs": 2}
TASKS = {
    "induction": {"task": "induction", "vocab_size": 12, "seq_length": 6},
    "classification": {"task": "classification", "vocab_size": 21, "seq_length": 5},
    "trigger": {"task": "trigger", "seq_length": 5},
    "backcopy": {"task": "backcopy", "seq_length": 6},
}


def tiny(task: str = "induction", **fields: Any) -> RunConfig:
    return RunConfig(**SIZES | TASKS[task] | fields)


def options(config: RunConfig) -> list[str]:
    """The config on a command line."""
    return [f"--{name}={value}" for name, value in config.to_dict().items() if value is not None]
