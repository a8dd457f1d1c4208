"""Trained models that are kept, and attention rows recorded during training."""

import pytest
import torch
from tiny import tiny

from src.runs import RunLog
from src.tasks import TASKS
from src.training import inspection
from src.training.inspection import (
    ClsRecorder,
    attention_weights,
    count_unkept,
    entropy_and_order,
    held_out,
    one_of_each,
    token_names,
    trained,
)
from src.training.loop import evaluate, train
from src.training.workers import execute


def test_a_model_is_trained_once_and_then_kept(tmp_path, monkeypatch):
    config = tiny(attention_type="sigmoid_norm", use_layernorm=False)
    model, summary = trained(config, tmp_path)
    (file,) = tmp_path.iterdir()
    assert file.name == f"induction_sigmoid_norm_{config.hash}.safetensors"
    monkeypatch.setattr(inspection, "train", None)  # would fail if called
    file.rename(tmp_path / "induction_sigmoid_norm_of_older_code.safetensors")
    again, summary_again = trained(config, tmp_path)
    assert summary_again == summary
    inputs, _ = held_out(config)
    assert torch.equal(attention_weights(again, inputs), attention_weights(model, inputs))


def test_models_of_a_stack_are_kept_before_the_log_says_that_they_are_finished(tmp_path, monkeypatch, capsys):
    configs = [tiny(seed=seed, use_layernorm=False, lr=lr) for seed, lr in [(0, 1e-3), (1, 1e-3), (2, 1e30)]]
    log, states = RunLog(tmp_path / "runs.db"), []
    written = inspection.keep

    def keep(*arguments):
        states.append(log.states()[arguments[1].hash])
        written(*arguments)

    monkeypatch.setattr(inspection, "keep", keep)
    assert execute(configs, log, "cpu", models=tmp_path / "models") == ["finished", "finished", "diverged"]
    assert states == ["running", "running"]
    assert count_unkept(configs, tmp_path / "models") == 1
    monkeypatch.setattr(inspection, "train", None)  # would fail if called
    for config in configs[:2]:
        model, summary = trained(config, tmp_path / "models")
        (results,), _ = evaluate(model, TASKS[config.task](config), *(x[None] for x in held_out(config)))
        assert results["eval/loss"] == pytest.approx(summary["eval/loss"])
        assert summary == log.row(config)["summary"]
    # a disk that is full costs the file, not the run
    (tmp_path / "full").write_text("")
    assert execute([tiny(seed=3)], log, "cpu", models=tmp_path / "full") == ["finished"]
    assert "the model of induction, softmax, seed 3 is not kept" in capsys.readouterr().err


def test_held_out_sequences_are_those_that_the_run_was_evaluated_on():
    config = tiny()
    model, summary = train(config)
    (results,), _ = evaluate(model, TASKS[config.task](config), *(x[None] for x in held_out(config)))
    assert results["eval/loss"] == pytest.approx(summary["eval/loss"])


def test_attention_weights_of_all_layers():
    config = tiny(num_epochs=1)
    model, _ = train(config)
    weights = attention_weights(model, held_out(config)[0][:3])
    assert weights.shape == (2, 3, 2, 5, 5)  # layers, sequences, heads, queries, keys
    assert torch.allclose(weights.sum(-1), torch.ones(2, 3, 2, 5))


def test_the_cls_row_is_recorded_after_every_step_and_changes_nothing():
    config = tiny("classification", num_heads=1, num_layers=1)
    inputs, labels = held_out(config)
    chosen = inputs[one_of_each(labels)]
    recorder = ClsRecorder(chosen)
    model, summary = train(config, observers=[recorder])
    assert recorder.rows.shape == (8, 4, 1, 5)  # 2 epochs of 4 batches, labels, heads, keys
    assert torch.allclose(recorder.rows.sum(-1), torch.ones(8, 4, 1))
    assert torch.allclose(recorder.rows[-1], attention_weights(model, chosen)[-1][:, :, -1])
    assert not torch.equal(recorder.rows[0], recorder.rows[-1])
    assert train(config)[1] == summary


def test_entropy_and_order_after_every_step():
    configs = [tiny("classification", num_layers=1, seed=seed) for seed in (0, 1)]
    entropy, order = entropy_and_order(configs, sequences=10)
    assert entropy.shape == order.shape == (2, 8)
    assert order[:, -1].tolist() == [1, 1]
    assert (entropy[:, 0] > 0.5).all()  # nearly uniform rows
    assert (entropy <= 1).all()
    entropy, _ = entropy_and_order(configs, sequences=configs[0].num_eval)
    for config, of_run in zip(configs, entropy, strict=True):
        _, summary = train(config)
        at_end = (summary["0_0_attn_entropy"] + summary["0_1_attn_entropy"]) / 2
        assert of_run[-1] == pytest.approx(at_end, rel=1e-5)


def test_the_first_sequence_of_each_label():
    assert one_of_each(torch.tensor([2, 0, 2, 1, 0])).tolist() == [1, 3, 0]


def test_tokens_in_words():
    assert token_names(torch.tensor([0, 7, 3, 57]), vocab_size=50) == ["BOS", "7", "3", "7?"]


def test_the_models_of_the_notebook_are_committed(monkeypatch):
    monkeypatch.setattr(inspection, "train", None)  # would fail if called
    from src.config import RunConfig

    for attention_type, positions in [
        ("softmax", "add"),
        ("sigmoid_unnorm", "concat"),
        ("raw_dotproduct_unnorm", "concat"),
    ]:
        config = RunConfig(attention_type=attention_type, positional_type=positions)
        model, summary = trained(config)
        (results,), _ = evaluate(model, TASKS[config.task](config), *(x[None] for x in held_out(config)))
        assert results["eval/acc_induction"] == summary["eval/acc_induction"] > 0.95
