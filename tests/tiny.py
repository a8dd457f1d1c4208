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


# The methods of a task of a user's own, in a file of theirs: whether the number of ones in a sequence is odd.
PARITY = """
    num_features, num_classes = 2, 1
    read = evaluated = slice(-1, None)

    def __init__(self, *members):
        self.num_positions = members[0].seq_length

    def sequences(self, num, generator):
        bits = torch.randint(2, (num, self.num_positions), generator=generator).float()
        return torch.stack([bits, 1 - bits], -1), bits.sum(1) % 2

    def loss(self, logits, targets):
        return (logits[:, :, -1, 0] - targets).square().mean(1)

    def accuracies(self, logits, targets):
        right = (logits[:, :, -1, 0] > 0.5) == targets.bool()
        return {"right": right.float().mean(1), "error": self.loss(logits, targets)}

    def final_metrics(self, model, weights, inputs, targets, generators):
        return metrics.collect(metrics.cls_attention, [w[..., -1, :] for w in weights])
"""
