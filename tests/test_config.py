import dataclasses
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import tiny

from src.config import FIELDS, ConfigError, RunConfig


def test_the_defaults_are_the_papers():
    """Section 4 of the paper."""
    induction, classification = RunConfig(), RunConfig(task="classification")
    assert (induction.vocab_size, induction.seq_length, induction.num_train) == (50, 13, 100_000)
    assert (induction.positional_type, induction.aux_loss_weight, induction.shift_query_token) == ("concat", 0.2, True)
    assert (classification.vocab_size, classification.seq_length, classification.num_train) == (41, 11, 10_000)
    assert (classification.positional_type, classification.num_labels) == ("no", 4)
    for config in (induction, classification):
        assert (config.embed_dim, config.num_layers, config.num_heads, config.lr) == (128, 2, 4, 1e-3)
        assert (config.batch_size, config.num_epochs, config.num_eval, config.seed) == (256, 10, 1000, 0)
        assert config.use_mlp
        assert config.use_layernorm


def test_a_task_sets_defaults_that_others_have_too_and_what_is_given_wins():
    trigger = RunConfig(task="trigger")
    assert (trigger.num_layers, trigger.use_mlp, trigger.lr) == (1, False, 3e-3)
    given = RunConfig(task="trigger", num_layers=2, use_mlp=True, lr=1e-3)
    assert (given.num_layers, given.use_mlp, given.lr) == (2, True, 1e-3)


def test_runs_before_a_field_was_there_keep_their_identity():
    """Logged when there was no optimizer, weight_decay, beta2, use_residual and use_bos."""
    assert RunConfig().hash == "3d8a295703f04a17"
    assert RunConfig(task="classification").hash == "220d7ffc895a3ee6"


def test_a_default_that_is_spelled_out_is_the_same_run():
    assert RunConfig(positional_type="concat", vocab_size=50, num_labels=None) == RunConfig()
    assert RunConfig(lr=1, num_heads=4.0) == RunConfig(lr=1.0)
    assert RunConfig(lr=1).hash == RunConfig(lr=1.0).hash


OTHER = {
    "task": "classification", "seed": 1, "attention_type": "linear", "lr": 0.5, "num_epochs": 1, "batch_size": 1,
    "embed_dim": 64, "num_layers": 1, "num_heads": 1, "use_mlp": False, "use_layernorm": False,
    "positional_type": "no", "vocab_size": 60, "seq_length": 9, "num_train": 1, "num_eval": 1,
    "aux_loss_weight": 0.0, "shift_query_token": False, "precision": "bf16", "optimizer": "sgd", "weight_decay": 0.0,
    "beta2": 0.95, "use_residual": False,
}  # fmt: skip


@pytest.mark.parametrize("name", OTHER)
def test_the_hash_depends_on_every_field(name):
    assert RunConfig(**{name: OTHER[name]}).hash != RunConfig().hash


def test_no_field_is_forgotten_here():
    assert OTHER.keys() | {"num_labels", "use_bos", "source"} == FIELDS.keys()
    task = {"task": "classification"}
    assert RunConfig(**task, num_labels=2).hash != RunConfig(**task).hash
    assert RunConfig(task="trigger", use_bos=False).hash != RunConfig(task="trigger").hash


@given(
    seed=st.integers(0, 2**63 - 1), lr=st.floats(1e-300, 1e300), task=st.sampled_from(["induction", "classification"])
)
def test_round_trip(seed, lr, task):
    config = tiny(task, seed=seed, lr=lr)
    again = RunConfig.from_dict(config.to_dict())
    assert again == config
    assert re.fullmatch("[0-9a-f]{16}", again.hash) and again.hash == config.hash  # noqa: PT018


def test_a_config_cannot_change():
    with pytest.raises(dataclasses.FrozenInstanceError):
        RunConfig().lr = 1


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"learning_rat": 1}, "learning_rat is no parameter of a run; the parameters are task, seed"),
        ({"attention_typ": "softmax"}, "attention_typ is no parameter of a run; did you mean attention_type?"),
        ({"attention_type": "sotfmax"}, "attention_type=sotfmax is not allowed; choose one of softmax, sigmoid_norm"),
        ({"task": "sorting"}, "task=sorting is not allowed; choose one of induction, classification"),
        ({"positional_type": False}, 'positional_type=False is not allowed; .*(YAML reads no as False: write "no")'),
        ({"lr": "fast"}, "lr=fast must be a number"),
        ({"lr": 0}, "lr=0.0 must be a positive number"),
        ({"lr": float("nan")}, "lr=nan must be a positive number"),
        ({"lr": True}, "lr=True must be a number"),
        ({"seed": -1}, "seed=-1 must be from 0"),
        ({"seed": 0.5}, "seed=0.5 must be a whole number"),
        ({"use_mlp": 1}, "use_mlp=1 must be True or False"),
        ({"use_mlp": "maybe"}, "use_mlp=maybe must be True or False"),
        ({"num_heads": 3}, "embed_dim=128 must be a multiple of num_heads=3"),
        ({"embed_dim": 5, "num_heads": 1}, "embed_dim=5 must be even with positional_type=concat"),
        ({"num_layers": 0}, "num_layers=0 must be at least 1"),
        ({"num_train": 0}, "num_train=0 must be at least 1"),
        ({"aux_loss_weight": -1}, "aux_loss_weight=-1.0 must be a number of at least 0"),
        ({"seq_length": 4}, "seq_length=4 must be at least 5"),
        ({"seq_length": 60}, "seq_length=60 needs 57 distinct context tokens, but vocab_size=50 has 49; lower"),
        ({"seq_length": 600, "vocab_size": 999}, "seq_length=600 must be at most 512"),
        ({"num_labels": 4}, "num_labels=4 has no meaning for task=induction; leave it out"),
        (
            {"task": "classification", "aux_loss_weight": 0},
            "aux_loss_weight=0.0 has no meaning for task=classification",
        ),
        ({"task": "classification", "vocab_size": 42}, "vocab_size=42 must be 1 more than a multiple of num_labels=4"),
        ({"task": "classification", "seq_length": 12}, "seq_length=12 must be from 3 to 11"),
        ({"task": "classification", "num_labels": 1}, "num_labels=1 must be at least 2"),
        ({"use_bos": True}, "use_bos=True has no meaning for task=induction; leave it out"),
        ({"task": "trigger", "vocab_size": 9}, "vocab_size=9 has no meaning for task=trigger; leave it out"),
        ({"task": "trigger", "seq_length": 3}, "seq_length=3 must be at least 4 for task=trigger"),
        ({"task": "backcopy", "seq_length": 3}, "seq_length=3 must be at least 4 for task=backcopy"),
        ({"optimizer": "adamv"}, "optimizer=adamv is not allowed; choose one of adamw, sgd.*did you mean adamw?"),
        ({"optimizer": 3}, "optimizer=3 must be a name"),
        ({"optimizer": "muon", "lr": 1}, "lr=1.0 must be above 0 and below 1 for optimizer=muon"),
        ({"optimizer": "muon", "lr": 0}, "lr=0.0 must be a positive number"),
        ({"weight_decay": -0.1}, "weight_decay=-0.1 must be a number of at least 0"),
        ({"beta2": 1}, "beta2=1.0 must be at least 0 and below 1"),
        ({"optimizer": "sgd", "beta2": 0.95}, "beta2=0.95 has no meaning for optimizer=sgd; leave it out"),
        ({"precision": "fp16"}, "precision=fp16 is not allowed; choose one of float32, tf32, bf16"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_what_is_refused(fields, sentence):
    pattern = ".*".join(re.escape(part) for part in sentence.split(".*"))
    with pytest.raises(ConfigError, match=pattern) as refusal:
        RunConfig.from_dict(fields)
    assert "\n" not in str(refusal.value)
