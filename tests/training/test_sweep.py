import functools
import itertools
import math
import re
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

from src.config import ConfigError
from src.training import sweep as sweeps
from src.training.stacks import make_stacks
from src.training.sweep import DISTRIBUTIONS, QUANTISED, drawing, part_of, points_of, read_sweep, size_of

SWEEPS = Path(__file__).parents[2] / "sweeps"


@functools.cache
def points_in(name):
    """The runs of one of the project's sweeps."""
    return read_sweep(SWEEPS / f"{name}.yaml").points()


def write(path, parameters, **others):
    path = path / "sweep.yaml"
    path.write_text(yaml.safe_dump({"method": "grid", "parameters": parameters} | others))
    return path


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("induction", 8640),
        ("classification", 12960),
        ("induction_main", 720),
        ("classification_main", 2160),
        ("quick", 9),
        ("quick_classification", 9),
        ("induction_cells", 8640),
        ("classification_cells", 12960),
    ],
)
def test_the_sweeps_have_the_papers_sizes(name, count):
    points = points_in(name)
    assert len(points) == len({point.hash for point in points}) == count


@pytest.mark.parametrize("task", ["induction", "classification"])
def test_the_main_sweep_is_part_of_the_whole(task):
    whole, main = (points_in(f"{task}{suffix}") for suffix in ("", "_main"))
    assert {point.hash for point in main} < {point.hash for point in whole}


@pytest.mark.parametrize("path", sorted(SWEEPS.glob("*.yaml")), ids=lambda p: p.stem)
def test_the_sweep_files_are_for_wandb_too(path):
    text = path.read_text()
    content = yaml.safe_load(text)
    assert content["program"] == "train.py"
    assert content["project"]
    assert content["command"] == ["${env}", "python", "${program}", "${args}"]
    assert re.search(r"command:\n  - ", text), "W&B wants block style"


def test_grid_order_is_wandbs(tmp_path):
    """Parameters by name, the last varies fastest; a range of whole numbers includes both ends."""
    path = write(
        tmp_path,
        {"seed": {"min": 3, "max": 5}, "attention_type": {"values": ["softmax", "linear"]}, "lr": {"value": 0.5}},
    )
    points = [(p.attention_type, p.seed, p.lr) for p in read_sweep(path).points()]
    assert points == [(kind, seed, 0.5) for kind, seed in itertools.product(["softmax", "linear"], [3, 4, 5])]


@pytest.mark.parametrize(("task", "cells"), [("induction", 288), ("classification", 864)])
def test_cells_are_the_same_runs_as_the_plain_sweep(task, cells):
    assert {point.hash for point in points_in(task)} == {point.hash for point in points_in(f"{task}_cells")}
    by_cell = read_sweep(SWEEPS / f"{task}_cells.yaml")
    assert math.prod(map(len, by_cell.points_of_grid.values())) == cells


def test_points_may_be_cells(tmp_path):
    path = write(tmp_path, {"seed": {"values": [[0, 1], 5]}, "lr": {"value": [0.1, 0.2, 0.1]}})
    points = [(p.lr, p.seed) for p in read_sweep(path).points()]
    assert points == [(0.1, 0), (0.1, 1), (0.1, 5), (0.2, 0), (0.2, 1), (0.2, 5)]


def test_repeated_values_are_one_run(tmp_path):
    assert len(read_sweep(write(tmp_path, {"lr": {"values": [1, 1.0, 2]}})).points()) == 2


def test_parameters_can_be_fixed(tmp_path):
    path = write(tmp_path, {"seed": {"values": [0, 1]}, "lr": {"values": [0.1, 0.2]}})
    points = read_sweep(path, fixed={"lr": 0.1, "num_epochs": 1}).points()
    assert [(p.seed, p.lr, p.num_epochs) for p in points] == [(0, 0.1, 1), (1, 0.1, 1)]


def test_random_sweeps_draw_the_same_each_time_and_within_bounds(tmp_path):
    parameters = {
        "lr": {"distribution": "log_uniform_values", "min": 1e-4, "max": 1e-1},
        "seed": {"min": 0, "max": 1000},
        "aux_loss_weight": {"min": 0.0, "max": 0.5},
        "num_train": {"distribution": "q_uniform", "min": 100, "max": 999, "q": 100},
        "attention_type": {"values": ["softmax", "linear"], "probabilities": [0.9, 0.1]},
        "num_epochs": {"value": 3},
    }
    path = write(tmp_path, parameters, method="random", run_cap=400)
    points = read_sweep(path).points()
    assert points == read_sweep(path).points()
    assert len(points) == 400
    assert all(1e-4 <= p.lr <= 1e-1 and 0 <= p.seed <= 1000 and 0 <= p.aux_loss_weight <= 0.5 for p in points)
    assert {p.num_train % 100 for p in points} == {0}
    assert {p.num_epochs for p in points} == {3}
    assert np.median([p.lr for p in points]) == pytest.approx(10**-2.5, rel=0.5)
    assert 300 < sum(p.attention_type == "softmax" for p in points) < 400


@pytest.mark.parametrize("name", [*DISTRIBUTIONS, *QUANTISED])
def test_distributions_are_those_that_wandb_documents(name):
    kind = name.removeprefix("q_")
    spec = {
        "log_uniform": {"min": np.log(2), "max": np.log(8)},
        "inv_log_uniform": {"min": -np.log(8), "max": -np.log(2)},
        "normal": {"mu": 4, "sigma": 0.1},
        "log_normal": {"mu": np.log(4), "sigma": 0.1},
        "beta": {"a": 3, "b": 3},
    }.get(kind, {"min": 2, "max": 8})
    spec = spec | {"distribution": name} | ({"q": 0.25} if name in QUANTISED else {})
    rng, draw = np.random.default_rng(0), drawing("lr", spec)
    values = np.array([draw(rng) for _ in range(4000)])
    low, high, median = (0, 1, 0.5) if kind == "beta" else (2, 8, {"uniform": 5, "int_uniform": 5}.get(kind, 4))
    assert low <= values.min() < values.max() <= high
    assert np.median(values) == pytest.approx(median, rel=0.07)
    assert name not in QUANTISED or np.all(values % 0.25 == 0)


@pytest.mark.parametrize("n", [1, 2, 5, 7, 9])
@pytest.mark.parametrize("name", ["quick", "random"])
def test_shards_are_disjoint_and_cover_the_sweep(n, name, tmp_path):
    parameters = {"lr": {"min": 0.1, "max": 1.0}, "seed": {"values": [0, 1]}}
    random = write(tmp_path, parameters, method="random", run_cap=18)
    sweep = read_sweep(random if name == "random" else SWEEPS / "quick.yaml")
    points = sweep.points()
    parts = [sweep.points(f"{i}/{n}") for i in range(1, n + 1)]
    assert sorted(p.hash for part in parts for p in part) == sorted(p.hash for p in points)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert all(part == [p for p in points if p in part] for part in parts)  # in the sweep's order


def test_shards_keep_together_what_can_be_one_stack():
    sweep = read_sweep(SWEEPS / "classification_main.yaml")
    stacks = make_stacks(points_in("classification_main"), None)
    for i in (1, 2, 3):
        part = set(sweep.points(f"{i}/3"))
        cut = [stack for stack in stacks if 0 < len(part & set(stack)) < len(stack)]
        assert len(cut) <= 2
    shapes = {p.attention_type for p in sweep.points("1/20")}
    assert len(shapes) > 3  # not one type's alone, which may be slow


def test_more_shards_than_runs_are_refused():
    sweep = read_sweep(SWEEPS / "quick.yaml")
    assert len(sweep.points("9/9")) == 1
    with pytest.raises(ConfigError, match="shard=20/20 asks for more parts than the sweep has runs; use at most 9"):
        sweep.points("20/20")


@pytest.mark.parametrize("which", ["0/2", "3/2", "1", "a/b", "1/0", "-1/2", "1/2/3", "", "²/3", "1/" + "9" * 5000])
def test_shards_out_of_range(which):
    with pytest.raises(ConfigError, match="shard=.* must be i/n with i from 1 to n, like 1/4"):
        part_of(which, 10**30)


HUGE = {
    "seed": {"min": 0, "max": 10**9 - 1},
    "lr": {"values": [0.1, 0.2]},
    "attention_type": {"values": ["softmax", "linear"]},
    "aux_loss_weight": {"values": [0.0, 0.2]},
}


def test_a_sweep_of_any_size_is_counted_and_cut_without_being_listed(tmp_path, monkeypatch):
    monkeypatch.setattr(sweeps, "MOST", 100)
    sweep, began = read_sweep(write(tmp_path, HUGE)), time.perf_counter()
    assert sweep.size == 8 * 10**9
    parts = [sweep.points(f"{i}/{10**8}") for i in (1, 2, 10**8 // 2 + 1, 10**8)]
    assert [len(part) for part in parts] == [80] * 4
    assert len({point.hash for part in parts for point in part}) == 320
    with pytest.raises(ConfigError, match="asks for 8,000,000,000 runs, .* give --shard=1/80000000 "):
        sweep.points()
    assert len(sweep.points("80000000/80000000")) == 100
    assert read_sweep(write(tmp_path, HUGE, run_cap=3)).size == 3
    assert read_sweep(write(tmp_path, HUGE | {"num_train": {"min": 1, "max": 2**62}})).size == 8 * 10**9 * 2**62
    assert time.perf_counter() - began < 10


@pytest.mark.parametrize("n", [1, 2, 7, 20])
def test_two_files_are_one_sweep(n, tmp_path):
    first = read_sweep(write(tmp_path, {"seed": {"values": [0, 1, 2]}, "lr": {"values": [0.1, 0.2]}}))
    second = read_sweep(write(tmp_path, {"lr": {"min": 0.1, "max": 1.0}}, method="random", run_cap=14))
    assert size_of([first, second]) == 20
    parts = [points_of([first, second], f"{i}/{n}") for i in range(1, n + 1)]
    whole = first.points() + second.points()
    assert sorted(p.hash for part in parts for p in part) == sorted(p.hash for p in whole)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize("n", [1, 2, 3, 7])
def test_shards_of_sweeps_that_share_runs_do_not(n, tmp_path):
    task = {"task": {"value": "induction"}}
    grid = read_sweep(write(tmp_path, task | {"seed": {"min": 0, "max": 10**9}, "vocab_size": {"value": None}}))
    two = {"lr": {"values": [0.001, 0.1]}, "seed": {"min": 1, "max": 3}, "vocab_size": {"values": [50, 60]}}
    other = read_sweep(write(tmp_path, task | two))
    capped = read_sweep(write(tmp_path, task | two, run_cap=7))
    parts = [points_of([capped, other, capped], f"{i}/{n}") for i in range(1, n + 1)]
    hashes = [point.hash for part in parts for point in part]
    assert len(set(hashes)) == len(hashes) == 12
    assert set(hashes) == {point.hash for point in other.points()}
    assert [point in grid for point in other.points()] == [p.lr == 0.001 and p.vocab_size == 50 for p in other.points()]


def test_random_sweeps_of_too_many_runs_are_refused(tmp_path):
    sweep = read_sweep(write(tmp_path, {"lr": {"min": 0.1, "max": 1.0}}, method="random", run_cap=10**9))
    with pytest.raises(ConfigError, match="run_cap=1000000000 of .* is more than the 100,000 runs"):
        sweep.points("1/1000")


def test_the_run_cap_of_a_grid_counts_its_first_points(tmp_path):
    path = write(tmp_path, {"seed": {"values": [[0, 1], 2, 3]}, "lr": {"values": [0.1, 0.2]}}, run_cap=4)
    points = [(p.lr, p.seed) for p in read_sweep(path).points()]
    assert points == [(0.1, 0), (0.1, 1), (0.1, 2), (0.1, 3), (0.2, 0), (0.2, 1)]
    parts = [read_sweep(path).points(f"{i}/4") for i in range(1, 5)]
    assert sorted((p.lr, p.seed) for part in parts for p in part) == points
    assert read_sweep(write(tmp_path, {"seed": {"values": [0, 1]}}, run_cap=5)).size == 2


def test_null_and_the_default_are_one_run(tmp_path):
    sweep = read_sweep(
        write(
            tmp_path,
            {"vocab_size": {"values": [None, 50, 60]}, "seed": {"values": [0, 1]}, "task": {"value": "induction"}},
        )
    )
    assert sorted((p.vocab_size, p.seed) for p in sweep.points()) == [(50, 0), (50, 1), (60, 0), (60, 1)]
    hashes = [p.hash for i in range(1, 4) for p in sweep.points(f"{i}/3")]
    assert len(hashes) == len(set(hashes)) == 4


def test_files_of_others(tmp_path):
    """Numbers as texts, hyphens, quantised ranges as W&B's controller lists them: without the upper end."""
    parameters = {
        "lr": {"values": ["1e-2", "0.01", 1e-3]},
        "num-heads": {"values": ["2", 4.0]},
        "num_train": {"distribution": "q_uniform", "min": 100, "max": "500", "q": 100},
        "aux_loss_weight": {"distribution": "q_uniform", "min": 0, "max": 0.3, "q": "0.1"},
        "use_mlp": {"values": ["true", "False"]},
        "seed": {"distribution": "int_uniform", "min": "3", "max": 4.0},
        "positional_type": {"distribution": "constant", "value": "no"},
    }
    sweep = read_sweep(write(tmp_path, parameters, name="of others"))
    assert sweep.axes == {
        "lr": [0.01, 0.001],
        "num_heads": [2, 4],
        "num_train": [100, 200, 300, 400],
        "aux_loss_weight": [0.0, 0.1, 0.2],
        "use_mlp": [True, False],
        "seed": range(3, 5),
        "positional_type": ["no"],
        "task": ["induction"],
    }
    assert len(sweep.points()) == 2 * 2 * 4 * 3 * 2 * 2


@pytest.mark.parametrize(
    ("parameters", "others", "task", "how"),
    [
        ({}, {}, "induction", "the default"),
        ({"num_labels": 4}, {}, "classification", "which alone has num_labels"),
        ({"shift_query_token": True}, {}, "induction", ""),
        ({"num_layers": 1}, {"program": "train_classification.py"}, "classification", "by its program"),
        ({"num_layers": 1}, {"name": "Classification, all"}, "classification", "by its program"),
    ],
)
def test_the_task_of_a_file_that_names_none(tmp_path, parameters, others, task, how):
    path = write(tmp_path, {"seed": {"value": 0}} | {k: {"value": v} for k, v in parameters.items()}, **others)
    sweep = read_sweep(path)
    assert {point.task for point in sweep.points()} == {task}
    assert f"names no task: {task}" in sweep.note
    assert how in sweep.note
    assert read_sweep(path, fixed={"task": task}).note is None


@pytest.mark.parametrize(
    ("parameters", "hint"),
    [
        ({"num_labels": 4, "shift_query_token": True}, ""),
        ({"num_layers": 1, "use_mlp": False}, r" \(num_layers, use_mlp are what sweeps of classification"),
    ],
)
def test_a_file_whose_task_is_uncertain_is_refused(tmp_path, parameters, hint):
    """The whole grid of classification without its task was once trained as induction."""
    path = write(tmp_path, {k: {"value": v} for k, v in parameters.items()})
    with pytest.raises(ConfigError, match=f"names no task{hint}.*; add `task: {{value: NAME}}` to its parameters, or"):
        read_sweep(path)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "is empty or no mapping"),
        ("- a", "is empty or no mapping"),
        ("a: [", "is not valid YAML"),
        ("method: bayes\nparameters: {lr: {value: 1}}", "method=bayes of .* cannot be run locally; use grid or random"),
        ("parameters: {lr: {value: 1}}", "method=None of .* cannot be run locally"),
        ("method: grid", "has no parameters"),
        ("method: grid\nparameters: {}", "has no parameters"),
        ("method: grid\nparameters: {learning_rate: {value: 1}}", "learning_rate is no parameter of a run"),
        ("method: grid\nparameters: {1: {value: 1}}", "1 is no parameter of a run"),
        ("method: grid\nparameters: {source: {value: a}}", "source is no parameter of a run"),
        ("method: grid\nparameters: {lr: 1}", "parameter lr needs value, values, or min and max"),
        ("method: grid\nparameters: {lr: {vaules: [1]}}", "sweep.yaml: parameter lr needs value, values"),
        ("method: grid\nparameters: {atention_type: {value: softmax}}", "sweep.yaml: atention_type is no parameter"),
        ("method: grid\nmethod: grid\nparameters: {lr: {value: 1}}", "method is there 2 times"),
        ("method: grid\nparameters: {lr: {value: 1}, lr: {value: 2}}", "lr is there 2 times"),
        ("method: grid\nparameters: {lr: {values: [1], values: [2]}}", "values is there 2 times"),
        ("method: grid\nparameters: {num-heads: {value: 1}, num_heads: {value: 2}}", "num_heads is there twice"),
        ("method: grid\nparameters: {lr: {value: 1, values: [2]}}", "has no use for values"),
        ("method: grid\nparameters: {lr: {values: [2], vales: 3}}", "has no use for vales"),
        ("method: grid\nparameters: {lr: {parameters: {a: {value: 1}}}}", "parameter lr needs value, values"),
        ("method: [grid]\nparameters: {lr: {value: 1}}", "method=.grid. of .* cannot be run locally"),
        ("method: grid\nparameters: {seed: {value: .inf}}", "seed=inf must be a whole number"),
        ("method: grid\nparameters: {seed: {values: [.nan]}}", "seed=nan must be a whole number"),
        ("method: grid\nparameters: {lr: {value: .nan}}", "lr=nan must be a positive number"),
        ("method: grid\nparameters: {lr: {value: %s}}" % ("9" * 400), "lr=inf must be a positive number"),
        ("method: grid\nparameters: {seed: {value: %s}}" % ("9" * 400), "must be a whole number below"),
        ("method: grid\nparameters: {seed: {value: %s}}" % ("9" * 5000), "is not valid YAML"),
        ("method: grid\nparameters: {lr: {value: 2026-11-25}}", "lr=2026-11-25 must be a number"),
        ("method: grid\nparameters: {lr: {value: !!int abc}}", "is not valid YAML"),
        ("method: grid\nparameters: {lr: {values: !!set {1, 2}}}", "values of lr must be a list"),
        ("method: grid\nparameters: {lr: {value: !!set {1, 2}}}", "lr={1, 2} must be a number"),
        ("method: grid\nparameters: {lr: {value: 1, distribution: 3}}", "distribution=3, which is unknown"),
        ("method: grid\nparameters: {lr: {value: 1, distribution: [a]}}", "distribution=.a., which is unknown"),
        ("method: grid\nparameters: {lr: &a {values: [*a]}}", "lr=.* must be a number"),
        ("method: grid\nparameters: {seed: {min: 5, max: 1}}", "min=5 of seed is more than max=1; exchange them"),
        ("method: grid\nparameters: {seed: {min: 5}}", "parameter seed with distribution=uniform lacks max"),
        (
            "method: grid\nparameters: {use_mlp: {min: 0, max: 1}, task: {value: induction}}",
            "use_mlp=0 must be True or False",
        ),
        ("method: grid\nparameters: {lr: {min: 0, max: 1, q: 0, distribution: q_uniform}}", "q=0 of lr must be above"),
        ("method: grid\nparameters: {lr: {min: 0, max: 1, q: a, distribution: q_uniform}}", "q=a of lr must be a num"),
        ("method: grid\nparameters: {lr: {min: 0, max: .inf, distribution: q_uniform}}", "max=inf of lr must be a n"),
        ("method: grid\nparameters: {lr: {min: 0, max: 1, q: 1e-9, distribution: q_uniform}}", "more than 100,000 val"),
        ("method: grid\nparameters: {lr: {min: 1, max: 9, distribution: q_log_uniform}}", "is for method=random"),
        ("method: grid\nparameters: {lr: {distribution: normal}}", "normal is for method=random"),
        ("method: grid\nparameters: {lr: {values: [1], probabilities: [1]}}", "is for method=random"),
        ("method: grid\nrun_cap: 0\nparameters: {lr: {value: 1}}", "run_cap=0 of .* must be the number of runs"),
        ("method: grid\nrun_cap: many\nparameters: {lr: {value: 1}}", "run_cap=many of .* must be the number"),
        ("method: grid\nparameters: {lr: {values: 1}}", "values of lr must be a list"),
        ("method: grid\nparameters: {lr: {values: []}}", "values of lr must be a list that is not empty"),
        ("method: grid\nparameters: {seed: {values: [[]]}}", "seed=.. is an empty list; give at least one value"),
        (
            "method: grid\nparameters: {num_heads: {values: [[1, 2]]}}",
            "num_heads=.1, 2. is a list, which only seed, lr, aux_loss_weight may be",
        ),
        ("method: grid\nparameters: {lr: {values: [fast]}}", "lr=fast must be a number"),
        ("method: grid\nparameters: {lr: {min: 0.1, max: 1}}", "parameter lr of a grid needs value, values, or"),
        ("method: grid\nparameters: {positional_type: {values: [no]}}", "YAML reads no as False"),
        ("method: grid\nparameters: {num_heads: {values: [4, 3]}}", "embed_dim=128 must be a multiple of num_heads=3"),
        ("method: random\nparameters: {lr: {min: 0.1, max: 1}}", "run_cap=None of .* ends by itself"),
        ("method: random\nrun_cap: 0\nparameters: {lr: {min: 0.1, max: 1}}", "run_cap=0 of .* must be the number of"),
        ("method: random\nrun_cap: 1\nparameters: {lr: {min: 0.1}}", "distribution=uniform lacks max"),
        ("method: random\nrun_cap: 1\nparameters: {lr: {min: 1, max: 2, distribution: zipf}}", "distribution=zipf"),
        ("method: random\nrun_cap: 1\nparameters: {lr: {min: a, max: 2}}", "min=a of lr must be a number"),
        ("method: random\nrun_cap: 1\nparameters: {lr: {min: 1, max: .inf}}", "max=inf of lr must be a number"),
        ("method: random\nrun_cap: 1\nparameters: {lr: {min: 2.5, max: 2}}", "min=2.5 of lr is more than max=2"),
        (
            "method: random\nrun_cap: 1\nparameters: {lr: {min: 1, max: 1000, distribution: log_uniform}}",
            "max=1000 of lr is too large: log_uniform draws e to that power",
        ),
        (
            "method: random\nrun_cap: 1\nparameters: {lr: {min: 0, max: 1, distribution: log_uniform_values}}",
            "min=0 of lr must be above 0",
        ),
        (
            "method: random\nrun_cap: 1\nparameters: {lr: {mu: 9.0e+18, distribution: q_log_normal}}",
            "lr was drawn as inf",
        ),
        ("method: random\nrun_cap: 1\nparameters: {lr: {mu: 9.0e+18, distribution: log_normal}}", "lr=inf must be"),
        (
            "method: random\nrun_cap: 1\nparameters: {lr: {values: [1, 2], probabilities: [0.5, 0.1]}}",
            "probabilities of lr",
        ),
    ],
)
def test_what_is_refused(tmp_path, text, sentence):
    path = tmp_path / "sweep.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=sentence) as refusal:
        read_sweep(path).points()
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        (["${env}", "python", "${program}", "--vocab_size=41", "--seed", 1, "${args}"], "--vocab_size=41, --seed, 1"),
        (["bash", "run.sh", "--lr=${envvar:LR}", "${args}"], "passes [--lr=${envvar:LR}] to the program"),
        (["./run", "use_mlp=True", "${args}"], "move it to the file's parameters"),
        ("python train.py", "command=python train.py of"),
    ],
)
def test_what_the_agents_command_passes_beside_parameters_is_refused(command, sentence, tmp_path):
    with pytest.raises(ConfigError, match=re.escape(sentence)):
        read_sweep(write(tmp_path, {"task": {"value": "induction"}}, program="run.sh", command=command))


def test_how_the_agents_command_starts_the_program_is_its_own_affair(tmp_path):
    for command in (
        ["${env}", "uv", "run", "python", "-u", "${program}", "${args_no_hyphens}"],
        ["python3", "theirs.py", "${args_json_file}"],
        None,
    ):
        assert read_sweep(write(tmp_path, {"lr": {"value": 1}}, command=command)).size == 1


def test_that_no_run_is_stopped_early_is_said(tmp_path):
    sweep = read_sweep(write(tmp_path, {"lr": {"value": 1}}, early_terminate={"type": "hyperband", "min_iter": 3}))
    assert "names no task: induction, the default; early_terminate of" in sweep.note
    assert sweep.note.endswith("here each run is trained to its end")


def test_unreadable_files(tmp_path):
    for path in (tmp_path, tmp_path / "missing.yaml"):
        with pytest.raises(ConfigError, match="cannot read the sweep file"):
            read_sweep(path)
    binary = tmp_path / "binary"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="cannot read the sweep file"):
        read_sweep(binary)
