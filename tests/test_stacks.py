"""Runs trained as one stack are the runs trained alone."""

import dataclasses
import math

import pytest
import torch
from tiny import tiny

from src.attention import ATTENTION
from src.config import ConfigError
from src.training import DivergedError, Observer, check_precision, train, train_stack

MEMBERS = [  # of one learning rate side by side
    {"seed": 0, "lr": 1e-2, "aux_loss_weight": 0.2},
    {"seed": 1, "lr": 1e-2, "aux_loss_weight": 0.7},
    {"seed": 0, "lr": 1e-3, "aux_loss_weight": 0.0},
]
SIZES = {"num_train": 64 * 25, "num_epochs": 2}  # 50 steps
VARIANTS = [
    {"task": task, "attention_type": name}
    for task in ("induction", "classification")
    for name in ("softmax", "sigmoid_unnorm", "mlp_norm")
]
VARIANTS += [
    {"task": "induction", "positional_type": "no", "use_mlp": False, "num_layers": 1},
    {"task": "induction", "positional_type": "add", "use_layernorm": False, "shift_query_token": False},
    {"task": "classification", "use_layernorm": False, "num_heads": 1, "num_layers": 1},
    {"task": "classification", "positional_type": "concat", "vocab_size": 161},
]


class Steps(Observer):
    def __init__(self):
        self.losses, self.epochs, self.ends, self.norms = [], [], [], []

    def on_step(self, step, loss, model):
        self.losses.append(loss.item())
        self.norms.append(model.head.weight.norm().item())

    def on_epoch(self, epoch, results):
        self.epochs.append(results)

    def on_end(self, state, summary, error=None):
        self.ends.append((state, summary, error))


def members(**fields):
    own = [m if fields["task"] == "induction" else m | {"aux_loss_weight": None} for m in MEMBERS]
    return [tiny(**SIZES | fields | member) for member in own]


def trained(configs):
    seen = [Steps() for _ in configs]
    _, outcomes = train_stack(configs, observers=[[steps] for steps in seen])
    return seen, outcomes


@pytest.fixture
def _double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("_double")
@pytest.mark.parametrize("fields", VARIANTS, ids=lambda f: "-".join(map(str, f.values())))
def test_members_are_the_single_runs(fields):
    """Every loss of 50 steps, every epoch's and every final result, and the model that observers see."""
    configs = members(**fields)
    stacked, outcomes = trained(configs)
    for config, seen, outcome in zip(configs, stacked, outcomes, strict=True):
        (alone,), (summary,) = trained([config])
        assert len(seen.losses) == 50
        torch.testing.assert_close(seen.losses, alone.losses, rtol=1e-10, atol=1e-15)
        torch.testing.assert_close(seen.norms, alone.norms, rtol=1e-10, atol=0)
        assert [epoch.keys() for epoch in seen.epochs] == [epoch.keys() for epoch in alone.epochs]
        assert seen.ends == [("finished", outcome, None)]
        assert outcome.keys() == summary.keys()
        for name in summary:
            assert outcome[name] == pytest.approx(summary[name], rel=1e-8, abs=1e-12), name


@pytest.mark.parametrize("fields", VARIANTS[::3], ids=lambda f: "-".join(map(str, f.values())))
def test_members_are_the_single_runs_in_float32(fields):
    configs = members(**fields)
    for config, seen in zip(configs, trained(configs)[0], strict=True):
        (alone,), _ = trained([config])
        # a loss of almost zero is the difference of numbers near one
        torch.testing.assert_close(seen.losses, alone.losses, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("task", ["induction", "classification"])
def test_a_diverging_member_ends_alone(task):
    """With a learning rate of 1e30 it is gone after an epoch; the others do not notice."""
    bad = {"lr": 1e30, "seed": 5, "use_layernorm": False}
    configs = [dataclasses.replace(config, use_layernorm=False) for config in members(task=task)]
    stacked, outcomes = trained([*configs[:2], tiny(task, **SIZES | bad), configs[2]])
    without, expected = trained(configs)
    assert isinstance(outcomes[2], DivergedError)
    ill = stacked[2]
    assert len(ill.losses) == 25
    assert len(ill.epochs) == 2
    assert not math.isfinite(ill.epochs[1]["train/loss"])
    ((state, summary, error),) = ill.ends
    assert (state, summary) == ("diverged", ill.epochs[1])
    assert error == str(outcomes[2]) == f"the loss of epoch 1 is {summary['train/loss']}"
    for i, j in enumerate((0, 1, 3)):
        torch.testing.assert_close(stacked[j].losses, without[i].losses, rtol=1e-5, atol=0)
        assert outcomes[j].keys() == expected[i].keys()
        assert outcomes[j]["eval/loss"] == pytest.approx(expected[i]["eval/loss"], rel=1e-4)


def test_a_stack_all_of_whose_members_diverge_stops():
    seen, outcomes = trained([tiny(lr=1e30, use_layernorm=False, seed=seed, num_epochs=9) for seed in (0, 1)])
    assert all(isinstance(outcome, DivergedError) for outcome in outcomes)
    assert [len(steps.epochs) for steps in seen] == [2, 2]


def test_members_of_one_learning_rate_need_no_views():
    """One group of AdamW, the parameters themselves: what a single run has."""
    from src.training import StackedAdamW, build_stack

    model = build_stack([tiny(seed=seed) for seed in range(3)])
    assert not StackedAdamW(model, [1e-3] * 3).views
    assert len(StackedAdamW(model, [1e-3, 1e-3, 1e-2]).adamw.param_groups) == 2


def test_every_attention_type_stacks():
    for name in ATTENTION:
        configs = [tiny(attention_type=name, seed=seed, num_epochs=1) for seed in (0, 1)]
        _, outcomes = train_stack(configs)
        for config, outcome in zip(configs, outcomes, strict=True):
            assert outcome["eval/loss"] == pytest.approx(train(config)[1]["eval/loss"], rel=1e-4)


def test_what_is_no_stack_is_refused():
    with pytest.raises(ConfigError, match="num_heads=2 and num_heads=4 cannot be in one stack; its runs may differ in"):
        train_stack([tiny(), tiny(num_heads=4)])
    with pytest.raises(ConfigError, match="precision=tf32 needs a CUDA GPU"):
        train(tiny(precision="tf32"))
    check_precision(tiny(precision="tf32"), "cuda")
