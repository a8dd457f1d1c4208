"""The task of which sinks are a theorem: what a sequence is, its targets, what is measured."""

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import tiny

from src.config import RunConfig
from src.tasks import Trigger
from src.training.loop import stream


@given(length=st.integers(4, 20), use_bos=st.booleans(), seed=st.integers(0, 99))
def test_sequences(length, use_bos, seed):
    task = Trigger(tiny("trigger", seq_length=length, use_bos=use_bos))
    inputs, targets = task.sequences(30, torch.Generator().manual_seed(seed))
    assert inputs.shape == targets.shape == (30, length, 16)
    for x, y in zip(inputs, targets, strict=True):
        (j,) = (x[:, 1] == 1).nonzero()[:, 0].tolist()
        assert 2 <= j < length
        first = 1 if use_bos else 0
        torch.testing.assert_close(y[j], x[first : j + 1].mean(0))
        assert (y[torch.arange(length) != j] == 0).all()
        ordinary = [i for i in range(first, length) if i != j]
        assert (x[ordinary][:, [0, 1]] == 0).all()
        assert (x[ordinary, 15] == 1).all()
        assert x[j, [0, 15]].tolist() == [0, 0]
        assert x[first:, 2:15].abs().max() < 1
        assert (x[first:, 2:15] != 0).float().mean() > 0.98
        if use_bos:
            assert x[0].tolist() == [1] + 15 * [0]


def test_the_trigger_is_uniform():
    inputs, _ = Trigger(tiny("trigger", seq_length=6)).sequences(8000, torch.Generator().manual_seed(0))
    counts = inputs[..., 1].argmax(1).bincount(minlength=6)
    assert counts[:2].tolist() == [0, 0]
    assert ((counts[2:] - 2000).abs() < 5 * (8000 * 0.25 * 0.75) ** 0.5).all()


def test_loss_and_largest_error_by_hand():
    task = Trigger(tiny("trigger"))
    targets = torch.zeros(2, 1, 5, 16)
    outputs = targets.clone()
    outputs[0, 0, 3, 7] = -0.4
    assert task.loss(outputs, targets).tolist() == pytest.approx([0.16 / 80, 0])
    assert task.accuracies(outputs, targets)["max_error"].tolist() == pytest.approx([0.4, 0])
    assert Trigger.solved.of(torch.tensor([0.4, 0.01]).numpy()).tolist() == [False, True]


def test_bos_is_weighed_in_the_rows_that_have_to_do_nothing():
    config = tiny("trigger", seq_length=6, num_layers=1, num_heads=1)
    task = Trigger(config)
    inputs, _ = task.sequences(20, stream(config, "test"))
    inputs = inputs[None]
    counted = task.counted(inputs)
    assert (counted.sum(-1) == 4).all()
    weights = torch.zeros(1, 20, 1, 6, 6)
    weights[..., 0] = counted[:, :, None] * 0.7 + ~counted[:, :, None] * 99.0
    weights[..., 1] = 0.1
    (results,) = task.final_metrics(None, [weights], inputs, None, [])
    assert results["0_0_abs_attn_bos"] == pytest.approx(0.7)
    assert results["0_0_abs_attn_all"] == pytest.approx(0.8)
    assert results["0_0_rel_attn_bos_global"] == pytest.approx(0.7 / 0.8)


def test_the_defaults_are_the_contracts():
    config = RunConfig(task="trigger")
    assert (config.num_layers, config.num_heads, config.embed_dim, config.seq_length) == (1, 1, 32, 16)
    assert (config.lr, config.batch_size, config.positional_type, config.use_bos) == (3e-3, 128, "no", True)
    assert not config.use_mlp
    assert not config.use_layernorm
    assert config.num_epochs * config.num_train // config.batch_size == 6000
    assert dataclasses.replace(config, use_bos=False).hash != config.hash
