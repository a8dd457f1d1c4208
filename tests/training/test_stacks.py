"""Runs trained as one stack are the runs trained alone."""

import dataclasses
import math
import os

import numpy as np
import pytest
import torch
from test_sweep import points_in
from tiny import tiny

from src.config import ConfigError, RunConfig
from src.model.registry import ATTENTION
from src.optimizers import StackedOptimizer
from src.runs import RunLog
from src.training import stacks, workers
from src.training.inspection import held_out
from src.training.loop import (
    DivergedError,
    Observer,
    build_model,
    build_stack,
    check_precision,
    check_stack,
    train,
    train_stack,
)
from src.training.stacks import fastest_stacks, make_stacks

MEMBERS = [  # of one learning rate side by side
    {"seed": 0, "lr": 1e-2, "aux_loss_weight": 0.2},
    {"seed": 1, "lr": 1e-2, "aux_loss_weight": 0.7},
    {"seed": 0, "lr": 1e-3, "aux_loss_weight": 0.0},
]
SIZES = {"num_train": 64 * 10, "num_epochs": 2}  # 20 steps
VARIANTS = [
    {"task": task, "attention_type": name}
    for task in ("induction", "classification")
    for name in ("softmax", "sigmoid_unnorm", "mlp_norm")
]
VARIANTS += [
    {"task": "trigger", "attention_type": "softmax_sink", "use_residual": False},
    {"task": "backcopy", "attention_type": "kv_bias", "optimizer": "muon"},
    {"task": "trigger", "attention_type": "value_gated", "optimizer": "sign", "weight_decay": 0.1},
    {"task": "classification", "attention_type": "ssmax", "optimizer": "momentum"},
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
    """Every loss of 20 steps, every epoch's and every final result, and the model that observers see."""
    configs = members(**fields)
    stacked, outcomes = trained(configs)
    for config, seen, outcome in zip(configs, stacked, outcomes, strict=True):
        (alone,), (summary,) = trained([config])
        assert len(seen.losses) == 20
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
def test_final_metrics_of_twenty_seeds_are_those_of_single_runs(task):
    """In float32, where rounding differs and training carries that on: the same on average."""
    configs = [tiny(task, seed=seed) for seed in range(20)]
    _, stacked = train_stack(configs)
    alone = [train(config)[1] for config in configs]
    for name in set(alone[0]) - {"epoch", "step"}:
        a, b = (np.array([outcome[name] for outcome in outcomes]) for outcomes in (stacked, alone))
        error = np.std(a - b, ddof=1) / np.sqrt(len(configs))
        assert abs(np.mean(a - b)) <= 3 * error + 1e-6 * abs(np.mean(b)) + 1e-7, name
        assert np.ptp(b) < 1e-3 or np.corrcoef(a, b)[0, 1] > 0.999, name  # each is its single run


@pytest.mark.parametrize("task", ["induction", "classification"])
def test_a_diverging_member_ends_alone(task):
    """With a learning rate of 1e30 it is gone after an epoch; the others do not notice."""
    bad = {"lr": 1e30, "seed": 5, "use_layernorm": False}
    configs = [dataclasses.replace(config, use_layernorm=False) for config in members(task=task)]
    stacked, outcomes = trained([*configs[:2], tiny(task, **SIZES | bad), configs[2]])
    without, expected = trained(configs)
    assert isinstance(outcomes[2], DivergedError)
    ill = stacked[2]
    assert len(ill.losses) == 10
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
    model = build_stack([tiny(seed=seed) for seed in range(3)])
    assert not StackedOptimizer(model, [1e-3] * 3).views
    assert len(StackedOptimizer(model, [1e-3, 1e-3, 1e-2]).optimizer.groups) == 2


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


def test_stacks_of_a_sweep():
    """Whole cells, or parts of them; those without auxiliary loss apart; of one learning rate side by side."""
    points = points_in("induction")
    whole = make_stacks(points, None)
    assert len(whole) == 8640 / 15
    assert {len(stack) for stack in whole} == {15}
    for stack in whole[:20]:
        check_stack(stack)
        assert len({config.aux_loss_weight for config in stack}) == 1
        assert [config.lr for config in stack] == sorted(config.lr for config in stack)
    for size in (1, 4, 15, 99):
        stacks = make_stacks(points, size)
        assert max(map(len, stacks)) == min(size, 15)
        assert sorted(config.hash for stack in stacks for config in stack) == sorted(config.hash for config in points)
    assert [stack[0] for stack in make_stacks(points, 1)] == points


def test_on_a_cpu_runs_of_cheap_steps_are_stacked():
    """Classification whose last block sees one position, or all of whose sequences are of few sets; not two layers of
    many sets, not induction."""
    points = points_in("classification") + points_in("induction")
    of_size = {1: set(), 7: set(), 8: set()}
    for stack in fastest_stacks(points, "cpu", 2):
        check_stack(stack)
        of_size[len(stack)] |= {(config.task, config.num_layers, config.vocab_size == 41) for config in stack}
    assert of_size[1] == {("classification", 2, False), ("induction", 2, False)}
    cheap = {("classification", 1, False), ("classification", 1, True), ("classification", 2, True)}
    assert of_size[7] == of_size[8] == cheap
    assert sum(map(len, fastest_stacks(points, "cpu", 2))) == len(points)
    assert fastest_stacks(points, "cuda", 1) == make_stacks(points, None)


@pytest.mark.parametrize(
    ("runs", "workers", "sizes"),
    [(15, 2, [8, 7]), (15, 4, [4, 4, 4, 3]), (6, 2, [3, 3]), (18, 2, [5, 5, 5, 3]), (3, 8, [1, 1, 1]), (15, 1, [8, 7])],
)
def test_cheap_runs_of_one_cell_use_all_workers(runs, workers, sizes):
    cell = [RunConfig(task="classification", num_layers=1, num_heads=1, seed=seed) for seed in range(runs)]
    parts = sorted(map(len, fastest_stacks(cell, "cpu", workers)), reverse=True)
    assert sum(parts) == runs
    assert len(parts) >= min(workers, runs)
    assert stacks.time_of(parts, workers) <= stacks.time_of(sizes, workers)


def test_what_certainly_needs_more_memory_than_there_is_is_refused(monkeypatch):
    """What is certain is less than what there is: parameters and sequences of what is built."""
    for config in (RunConfig(), RunConfig(task="classification", use_mlp=False, positional_type="concat")):
        model = build_model(config)
        tensors = [*model.parameters()] * 2 + [held_out(config)[0]] * (1 + config.num_train // config.num_eval)
        assert 0.8 < stacks.least_memory(config) / sum(t.numel() * t.element_size() for t in tensors) < 1
        stacks.check_memory([config] * 8, "cpu")
    for fields in ({"embed_dim": 10**6}, {"num_train": 10**12}, {"vocab_size": 10**15}, {"num_layers": 10**9}):
        ((name, value),) = fields.items()
        with pytest.raises(ConfigError, match=f"{name}={value}.* need at least .* GB of memory") as refusal:
            stacks.check_memory([RunConfig(**fields)], "cpu")
        assert "\n" not in str(refusal.value)
    config = RunConfig(embed_dim=1024)
    monkeypatch.setattr(os, "sysconf", lambda name: int((2.5 * stacks.least_memory(config)) ** 0.5))
    stacks.check_memory([config] * 2, "cpu")
    with pytest.raises(ConfigError, match="for a stack of 3"):
        stacks.check_memory([config] * 3, "cpu")


def test_what_fits_is_judged_by_a_trial(monkeypatch):
    """On a GPU that is not there: 10 GB are free and a trial of two takes 2 GB."""
    trials = []
    monkeypatch.setattr(stacks, "train_stack", lambda configs, device: trials.append(configs))
    for name, value in {
        "mem_get_info": (10**10, 2 * 10**10), "memory_reserved": 10**8, "max_memory_reserved": 2 * 10**9 + 10**8,
        "reset_peak_memory_stats": None, "empty_cache": None,
    }.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, lambda value=value: value)
    configs = [tiny(seed=seed) for seed in range(5)]
    assert stacks.members_that_fit(configs) == 8  # 90% of 10 GB, each a little more than 1 GB
    ((one, two),) = trials
    assert (one.seed, two.seed, one.num_epochs, one.num_train) == (0, 1, 1, 192)
    assert stacks.members_that_fit([tiny(batch_size=10**12)]) == 4  # which the data cuts short
    assert (trials[-1][0].num_epochs, trials.pop()[0].num_train) == (3, 256)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (100, 10**10))
    assert stacks.members_that_fit(configs) == 1

    def no_memory(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(stacks, "train_stack", no_memory)
    assert stacks.members_that_fit(configs) == 1


def test_parts_are_as_few_and_as_even_as_they_can_be():
    assert [len(part) for part in stacks.evenly(list(range(15)), 14)] == [8, 7]
    assert [len(part) for part in stacks.evenly(list(range(15)), 20)] == [15]
    assert [len(part) for part in stacks.evenly(list(range(8)), 3)] == [3, 3, 2]
    assert sum(stacks.evenly(list(range(15)), 4), []) == list(range(15))


def test_a_stack_that_is_too_large_is_trained_in_halves(tmp_path, monkeypatch):
    sizes = []

    def small_memory(configs, device, observers):
        sizes.append(len(configs))
        if len(configs) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return train_stack(configs, device, observers)

    monkeypatch.setattr(workers, "train_stack", small_memory)
    configs, log = [tiny(seed=seed) for seed in range(5)], RunLog(tmp_path / "runs.db")
    assert workers.execute(configs, log, "cpu") == ["finished"] * 5
    assert sizes == [5, 2, 3, 1, 2]
    assert {len(log.row(config)["history"]) for config in configs} == {3}

    def no_memory(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(workers, "train_stack", no_memory)
    assert workers.execute(configs[:2], log, "cpu") == ["failed"] * 2
    assert all(row["error"].strip().endswith("CUDA out of memory") for row in log.records() if row["seed"] < 2)


def test_a_member_that_raises_an_error_fails_alone(tmp_path, monkeypatch):
    """As a function of one's own may, where scores are no numbers; who has ended before is not trained again."""

    def fragile(scores, mask):
        if scores.isnan().any():
            raise ValueError("scores are no numbers")
        return ATTENTION["softmax"].normalise(scores, mask)

    monkeypatch.setitem(ATTENTION, "fragile", dataclasses.replace(ATTENTION["softmax"], normalise=fragile))
    configs = [tiny(attention_type="fragile", use_layernorm=False, lr=lr) for lr in (1e-3, 1e-2, 1e30)]
    early = tiny(attention_type="fragile", use_layernorm=False, seed=1)

    def trained(members, device, observers):
        if early in members:
            observers[members.index(early)][0].on_end("diverged", {})
        return train_stack(members, device, observers)

    log = RunLog(tmp_path / "runs.db")
    monkeypatch.setattr(workers, "train_stack", trained)
    assert workers.execute([early, *configs], log, "cpu") == ["diverged", "finished", "finished", "failed"]
    (error,) = (row["error"] for row in log.records() if row["state"] == "failed")
    assert error.strip().endswith("scores are no numbers")
    assert log.row(early)["state"] == "diverged"


def test_a_stack_in_the_log(tmp_path):
    """A row for each member, as if trained alone; the one that diverges ends at its epoch."""
    configs = [tiny(seed=seed, use_layernorm=False, lr=lr) for seed, lr in [(0, 1e-3), (1, 1e-3), (0, 1e30)]]
    log = RunLog(tmp_path / "runs.db")
    assert workers.execute(configs, log, "cpu") == ["finished", "finished", "diverged"]
    assert [len(log.row(config)["history"]) for config in configs] == [3, 3, 2]
    assert log.row(configs[1])["summary"]["eval/loss"] == pytest.approx(train(configs[1])[1]["eval/loss"], rel=1e-4)
    assert [row["error"] for row in log.records()][-1] == "the loss of epoch 1 is nan"
    with pytest.raises(KeyboardInterrupt):
        workers.execute(configs[:2], log, "cpu", [[], [Interrupt()]])
    assert [log.states()[config.hash] for config in configs] == ["interrupted", "interrupted", "diverged"]


class Interrupt(Observer):
    def on_epoch(self, epoch, results):
        if epoch == 1:
            raise KeyboardInterrupt
