import math

import pytest
import torch
from tiny import tiny

from src.config import ConfigError, RunConfig
from src.training import loop
from src.training.loop import (
    DivergedError,
    Observer,
    choose_device,
    estimate_seconds,
    evaluate,
    num_steps,
    stream,
    train,
)


class Record(Observer):
    def __init__(self):
        self.steps, self.epochs = [], []

    def on_step(self, step, loss, model):
        self.steps.append((step, loss.item()))

    def on_epoch(self, epoch, results):
        self.epochs.append(results)


def trained(config):
    record = Record()
    model, summary = train(config, observers=[record])
    return record, summary, torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize("task", ["induction", "classification"])
def test_one_seed_twice_is_bitwise_the_same(task):
    """Whatever ran before, and whatever the state of the global random numbers."""
    first = trained(tiny(task, seed=3))
    trained(tiny(seed=4))
    torch.manual_seed(5)
    second = trained(tiny(task, seed=3))
    assert first[0].steps == second[0].steps
    assert first[0].epochs == second[0].epochs
    assert first[1] == second[1]
    assert torch.equal(first[2], second[2])
    assert trained(tiny(task, seed=4))[0].steps != first[0].steps


def test_streams_differ_by_seed_and_purpose():
    draws = {
        torch.randint(2**40, (), generator=stream(tiny(seed=seed), purpose)).item()
        for seed in (0, 1, 11)
        for purpose in ("order", "training data", "1 order")
    }
    assert len(draws) == 9


def test_what_is_observed():
    config = tiny(num_train=150, batch_size=64, num_epochs=3)
    record, summary, _ = trained(config)
    assert num_steps(config) == 9
    assert [step for step, _ in record.steps] == list(range(1, 10))
    assert [epoch["epoch"] for epoch in record.epochs] == [0, 1, 2, 3]
    assert [epoch["step"] for epoch in record.epochs] == [0, 3, 6, 9]
    losses = [loss for _, loss in record.steps]
    mean = (64 * losses[0] + 64 * losses[1] + 22 * losses[2]) / 150  # over sequences: the last batch is smaller
    assert record.epochs[1]["train/loss"] == pytest.approx(mean)
    assert record.epochs[-1].items() <= summary.items()


HEADS = [f"{layer}_{head}" for layer in range(2) for head in range(2)]


OF_HEADS = ["attn_entropy", "sink_place", "sink_share", "row_sum", "value_drain"]
OF_LAYERS = [f"{i}_residual_{name}" for i in range(2) for name in ("peak", "max_median", "kurtosis")]


def test_names_of_what_induction_logs():
    _, summary, _ = trained(tiny())
    names = [
        "abs_attn_bos",
        "abs_attn_all",
        "rel_attn_bos",
        "rel_attn_bos_global",
        "mag_attn_bos_global",
        *OF_HEADS,
    ]
    once = ["epoch", "step", "train/loss", "eval/loss", "eval/acc_all", "eval/acc_induction"]
    assert set(summary) == {*once, *OF_LAYERS, *(f"{head}_{name}" for head in HEADS for name in names)}


def test_names_of_what_classification_logs():
    _, summary, _ = trained(tiny("classification"))
    names = ["abs_attn_max", "abs_attn_sum", "rel_attn_max", "mag_attn_max", *OF_HEADS]
    mixing = [
        "top1_dominance_rate_a", "top1_dominance_rate_b", "avg_top1_dominance_rate", "mixed_a_predicts_top1_label",
        "mixed_b_predicts_top1_label", "total_pairs",
    ]  # fmt: skip
    assert set(summary) == {
        *["epoch", "step", "train/loss", "eval/loss", "eval/acc", *OF_LAYERS],
        *(f"{head}_{name}" for head in HEADS for name in names),
        *(f"mixing/{head}/{name}" for head in HEADS for name in mixing),
    }


@pytest.mark.parametrize("attention_type", ["softmax", "sigmoid_unnorm"])
def test_a_small_run_learns_its_task(attention_type):
    config = tiny("classification", embed_dim=32, num_train=2000, num_epochs=4, lr=5e-3, attention_type=attention_type)
    assert trained(config)[1]["eval/acc"] > 0.95


def test_a_small_induction_run_learns_its_task():
    config = tiny(vocab_size=8, seq_length=6, embed_dim=32, num_train=8000, num_epochs=5, lr=5e-3, num_eval=200)
    summary = trained(config)[1]
    assert summary["eval/acc_induction"] > 0.9
    assert summary["eval/acc_all"] < summary["eval/acc_induction"]  # the context is random


def test_a_run_that_diverges_says_so_and_keeps_what_it_had():
    record = Record()
    with pytest.raises(DivergedError, match="the loss of epoch 1 is"):
        train(tiny(lr=1e30, use_layernorm=False), observers=[record])
    assert [epoch["epoch"] for epoch in record.epochs] == [0, 1]
    assert not math.isfinite(record.epochs[1]["train/loss"])


def test_a_run_whose_last_evaluation_is_not_finite_has_diverged(monkeypatch):
    """The last step spoils the model: no loss of training tells of it."""
    evaluations = []

    def spoil_then_evaluate(model, *rest):
        evaluations.append(1)
        if len(evaluations) == 3:
            model.head.weight.data.fill_(math.nan)
        return evaluate(model, *rest)

    monkeypatch.setattr(loop, "evaluate", spoil_then_evaluate)
    record = Record()
    with pytest.raises(DivergedError, match="the loss of epoch 2 is nan"):
        train(tiny(num_epochs=2), observers=[record])
    assert math.isfinite(record.epochs[-1]["train/loss"])


def test_bf16_trains_close_to_float32():
    losses = [trained(tiny(precision=p, num_train=2000, embed_dim=32))[1]["eval/loss"] for p in ("float32", "bf16")]
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=0.02)


def test_the_first_step_is_adamws():
    """Against torch's own optimiser, on the same batch."""
    from src.tasks import TASKS
    from src.training.loop import build_model

    config = tiny(num_train=64, num_epochs=1)
    task, model = TASKS[config.task](config), build_model(config)
    inputs, targets = task.sequences(64, stream(config, "training data"))
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.lr, weight_decay=0.01, fused=False)
    loss = task.loss(model(inputs[None])[0], targets[None])
    loss.backward()
    optimizer.step()
    record, _, parameters = trained(config)
    assert record.steps[0][1] == pytest.approx(loss.item(), rel=1e-5)
    expected = torch.cat([p.detach().flatten() for p in model.parameters()])
    # A step has the sign of the gradient, whatever its size: rounding may turn some that are almost zero.
    assert ((parameters - expected).abs() < 1e-6).float().mean() > 0.99


def test_devices():
    assert choose_device("cpu") == "cpu"
    if not torch.cuda.is_available():
        assert choose_device("auto") == "cpu"
        with pytest.raises(ConfigError, match="device=cuda needs a CUDA GPU; use --device=cpu here"):
            choose_device("cuda")


def test_the_estimate_is_of_all_steps_and_evaluations(monkeypatch):
    """By a clock on which a step takes 0.01 s, an evaluation 2 s, and the first of a process 60 s."""
    clock = [0.0]

    def train_stack(configs, device):
        clock[0] += 0.01 * num_steps(configs[0]) + 2 * (1 + configs[0].num_epochs) + 60 * (clock[0] == 0)

    monkeypatch.setattr(loop, "train_stack", train_stack)
    monkeypatch.setattr(loop.time, "perf_counter", lambda: clock[0])
    config = RunConfig(num_train=2_000_000)
    assert estimate_seconds([config]) == pytest.approx(0.01 * num_steps(config) + 2 * (1 + config.num_epochs))


def test_a_step_is_judged_by_the_sequences_that_it_sees(monkeypatch):
    """A batch may be larger than the training data, here than the memory."""
    tried = []
    monkeypatch.setattr(loop, "train_stack", lambda configs, device: tried.extend(configs))
    estimate_seconds([tiny(batch_size=10**12)])
    assert {config.batch_size for config in tried} == {256}
    assert [config.num_train for config in tried] == [256, 3 * 256, 9 * 256, 3 * 256]
