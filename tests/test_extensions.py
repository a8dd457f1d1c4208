"""Attention functions and tasks of one's own, in a file that the package knows nothing of."""

import dataclasses
import math
import os
import sys

import pytest
import torch
from tiny import PARITY, tiny

from src.config import RunConfig
from src.errors import ConfigError
from src.extensions import load
from src.model.attention import PAPER
from src.model.registry import ATTENTION, describe, find_attention
from src.runs import RunLog, load_runs
from src.tasks import find_task
from src.training.loop import build_model, check_own_task, train
from src.training.workers import Job, run_job

OWN = (
    '''
import torch
from torch.nn.functional import cross_entropy

from src import metrics
from src.model.attention import AttentionType, dot
from src.tasks import HeadScore, Solved, Task


def softmax1(q, k, mask):
    z = q @ k.mT / q.shape[-1] ** 0.5
    if mask is not None:
        z = z.masked_fill(~mask, -torch.inf)
    zero = torch.zeros_like(z[..., :1])
    return torch.cat([z, zero], -1).softmax(-1)[..., :-1]


def with_sink(scores, mask, sink):
    scores = scores if mask is None else scores.masked_fill(~mask, -torch.inf)
    sink = sink.expand(*scores.shape[:-1], 1)
    return torch.cat([scores, sink], -1).softmax(-1)[..., :-1]


learned_sink = AttentionType(
    label="sink", formula="exp(z) / (exp(b) + Σ exp(z))", kernel=dot, normalise=with_sink,
    numbers={"sink": lambda longest: 0.0},
)


class Parity(Task):
    """Whether the number of ones in a sequence of vectors (x, 1 − x) is odd, as a squared error."""

    defaults = {"seq_length": 4, "num_train": 256, "positional_type": "no"}
    accuracy = "eval/right"
    solved = Solved("eval/error", below=0.1, words="squared error")
'''
    + PARITY
)


@pytest.fixture
def own(tmp_path):
    path = tmp_path / "own.py"
    path.write_text(OWN)
    return path


def test_a_function_trains_as_the_same_one_written_elsewhere(own):
    of_function = train(tiny(attention_type=f"{own}:softmax1"))[1]
    of_entry = train(tiny(attention_type=f"{own}:learned_sink", lr=1e-30))[1]  # whose sink then stays at zero
    at_start = train(tiny(attention_type=f"{own}:softmax1", lr=1e-30))[1]
    assert of_entry["eval/loss"] == pytest.approx(at_start["eval/loss"], rel=1e-5)
    assert of_function["eval/loss"] < at_start["eval/loss"]


def test_an_own_entry_learns_its_numbers_one_for_each_head(own):
    model, _ = train(tiny(attention_type=f"{own}:learned_sink"))
    numbers = [block.attention.numbers["sink"] for block in model.blocks]
    assert all(number.shape == (1, 2) and number.abs().min() > 0 for number in numbers)


def test_a_task_of_vectors_and_a_squared_error(own):
    config = RunConfig(task=f"{own}:Parity", num_epochs=1, num_eval=32, embed_dim=16)
    assert (config.seq_length, config.vocab_size) == (4, None)
    check_own_task(config)
    _, summary = train(config)
    assert math.isfinite(summary["eval/loss"])
    assert summary["eval/error"] == summary["eval/loss"]
    assert find_task(config.task).solved.of(summary["eval/error"] * torch.ones(1).numpy()).tolist() == [False]


def test_an_edited_file_is_a_new_run_and_an_old_config_stays_readable_but_does_not_train(own):
    first = tiny(attention_type=f"{own}:softmax1")
    own.write_text(OWN.replace("0.5", "0.25"))
    second = tiny(attention_type=f"{own}:softmax1")
    assert first.hash != second.hash
    assert RunConfig.from_dict(first.to_dict()) == first
    with pytest.raises(ConfigError, match="edited since"):
        build_model(first)
    own.unlink()
    assert RunConfig.from_dict(second.to_dict()).hash == second.hash
    assert describe(second.attention_type).label == "softmax1"  # figures need no file


SCALES = {"own.py:f": "def scaled(x, by): return x * by", "my_package.functions:f": "from .scales import scaled"}


@pytest.mark.parametrize(("name", "scaled"), SCALES.items())
def test_an_edit_of_the_same_size_in_the_same_second_is_run(name, scaled, tmp_path, monkeypatch):
    """Python has compiled or imported the file before it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    (tmp_path / "my_package").mkdir()
    (tmp_path / "my_package" / "scales.py").write_text(SCALES["own.py:f"])
    path = tmp_path / ("own.py" if name.startswith("own.py") else "my_package/functions.py")
    found = []
    for by in ("1.0", "2.0"):
        path.write_text(f"{scaled}\ndef f(q, k, mask): return scaled(q, {by})\n")
        os.utime(path, (10**9, 10**9))
        found.append(load(name))
    q = torch.ones(2)
    assert [f(q, q, None).tolist() for f in found] == [[1, 1], [2, 2]]


def test_the_same_file_by_another_way_is_the_same_run(own, monkeypatch):
    monkeypatch.chdir(own.parent)
    assert tiny(attention_type="./own.py:softmax1") == tiny(attention_type="own.py:softmax1")


def test_a_file_imports_what_lies_beside_it(own, monkeypatch):
    monkeypatch.setattr("sys.path", sys.path.copy())
    own.with_name("beside_it.py").write_text("from math import pi")
    own.write_text(f"from beside_it import pi\n{OWN}")
    assert find_attention(f"{own}:softmax1").label == "softmax1"


def test_own_code_trains_in_worker_processes(own, tmp_path):
    points = [tiny(attention_type=f"{own}:softmax1", seed=seed, num_epochs=1) for seed in range(2)]
    for _ in run_job(Job([points[:1], points[1:]], tmp_path / "runs.db"), 2):
        pass
    runs = load_runs(tmp_path / "runs.db")
    assert runs["state"].tolist() == ["finished"] * 2
    assert set(runs["attention_type"]) == {f"{own}:softmax1"}
    assert RunLog(tmp_path / "runs.db").states().keys() == {point.hash for point in points}


BODIES = {
    "gives shape": "return q @ k.mT[..., :-1]",
    "not finite": "return (q @ k.mT) / 0",
    "on masked keys": "return (q @ k.mT).softmax(-1)",
    "fails on a small example (NameError": "return nothing",
    "fails on a small example (TypeError": "return q @ None",
    "the last query other weights where it is the only one": "return seen(q @ k.mT * q.shape[-2], mask)",
    "a parameter of its own": "return seen(q @ k.mT * SCALE, mask)",
    "no gradient": "return seen((q @ k.mT).detach(), mask)",
}
START = """
import torch

SCALE = torch.nn.Parameter(torch.ones(1))


def seen(weights, mask):
    return weights if mask is None else weights * mask


"""


@pytest.mark.parametrize(("words", "body"), BODIES.items())
def test_a_wrong_function_is_refused_before_training(words, body, tmp_path):
    (tmp_path / "wrong.py").write_text(f"{START}def f(q, k, mask):\n    {body}\n")
    with pytest.raises(ConfigError) as error:
        tiny(attention_type=f"{tmp_path / 'wrong.py'}:f")
    assert words in str(error.value)


def test_a_kernel_is_of_pairs_and_what_counts_places_is_a_whole_function(tmp_path):
    """Scores are of distinct tokens, not of places; and queries may be the last places alone."""
    entry = "kind = AttentionType(label='f', formula='', kernel=far, normalise=masked)"
    far = "def far(q, k):\n    return q @ k.mT * torch.arange(k.shape[-2])"
    imported = "from src.model.attention import AttentionType, masked"
    (tmp_path / "far.py").write_text(f"{START}{imported}\n{far}\n{entry}\n")
    with pytest.raises(ConfigError, match="give it as `whole`"):
        tiny(attention_type=f"{tmp_path / 'far.py'}:kind")
    body = "Q, K = q.shape[-2], k.shape[-2]\n    near = torch.arange(K) - torch.arange(K - Q, K)[:, None]"
    body = f"{body}\n    return seen((q @ k.mT + near).exp(), mask)"
    (tmp_path / "near.py").write_text(f"{START}def f(q, k, mask):\n    {body}\n")
    model = build_model(tiny(attention_type=f"{tmp_path / 'near.py'}:f", aux_loss_weight=0.0))
    inputs = torch.randint(12, (3, 5))
    torch.testing.assert_close(model(inputs)[0][:, -1:], model(inputs, slice(-1, None))[0])


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("own.py:softmax2", "did you mean softmax1"),
        ("own.py:", "not complete"),
        (":softmax1", "not complete"),
        ("missing.py:f", "no file missing.py"),
        ("no.such.module:f", "no module no.such.module"),
        ("own.py:OWN_NUMBER", "no function of queries"),
        ("broken.py:f", "SyntaxError"),
    ],
)
def test_a_name_of_nothing_is_refused_in_a_sentence(name, words, own, monkeypatch):
    monkeypatch.chdir(own.parent)
    own.write_text(OWN + "\nOWN_NUMBER = 3\n")
    (own.parent / "broken.py").write_text("def f(:\n")
    with pytest.raises(ConfigError, match=words):
        tiny(attention_type=name)
    with pytest.raises(ConfigError):
        RunConfig(task=name)


def test_a_task_that_lacks_something_is_refused_before_training(own):
    own.write_text(OWN.replace('accuracy = "eval/right"', 'accuracy = "eval/left"'))
    with pytest.raises(ConfigError, match="names eval/left as its accuracy"):
        check_own_task(RunConfig(task=f"{own}:Parity"))
    own.write_text(OWN.replace("def loss", "def lost"))
    with pytest.raises(ConfigError, match="does not define loss"):
        RunConfig(task=f"{own}:Parity")
    own.write_text(OWN.replace("bits.sum(1) % 2", "bits.sum(1) % nothing"))
    with pytest.raises(ConfigError, match="fails on a few sequences"):
        check_own_task(RunConfig(task=f"{own}:Parity"))
    own.write_text(OWN.replace('"num_train": 256, ', ""))
    with pytest.raises(ConfigError, match="lacks num_train"):
        RunConfig(task=f"{own}:Parity")
    own.write_text(OWN.replace('"num_train": 256, ', '"num_train": 256, "seed": 1, '))
    with pytest.raises(ConfigError, match="default of seed"):
        RunConfig(task=f"{own}:Parity")
    own.write_text(OWN.replace("(Task)", ""))
    with pytest.raises(ConfigError, match="inherit from"):
        RunConfig(task=f"{own}:Parity")


def test_a_function_of_a_package_that_is_installed(own, monkeypatch):
    own.rename(own.with_name("my_functions.py"))
    monkeypatch.syspath_prepend(own.parent)
    assert find_attention("my_functions:softmax1").label == "softmax1"
    assert (
        tiny(attention_type="my_functions:softmax1").source == tiny(attention_type="my_functions:learned_sink").source
    )


@pytest.mark.parametrize("more", [{"extra_key": "key"}, {"extra_key": "key and value"}, {"value_gate": True},
                                  {"output_gate": "head"}, {"output_gate": "element"}])  # fmt: skip
def test_what_an_entry_may_have_beside_queries_and_keys(more, monkeypatch):
    """Rows and places give the same output, and a stack's members are the single models."""
    kind = dataclasses.replace(PAPER["softmax"], **more)
    monkeypatch.setitem(ATTENTION, "more", kind)
    config = tiny(attention_type="more")
    model = build_model(config).double()
    inputs = torch.randint(12, (3, 5))
    logits, weights = model(inputs)
    for block in model.blocks:
        monkeypatch.setattr(block.attention, "attend_to_rows", block.attention.attend_to_places)
    by_places, of_places = model(inputs)
    torch.testing.assert_close(logits, by_places)
    torch.testing.assert_close(weights, of_places)
    assert (weights[0].sum(-1).max() < 1) == ("extra_key" in more)
    logits.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
