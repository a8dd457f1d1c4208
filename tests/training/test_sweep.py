import itertools
import re
from pathlib import Path

import numpy as np
import pytest
import yaml

from src.config import ConfigError
from src.training.stacks import make_stacks
from src.training.sweep import DISTRIBUTIONS, read_sweep, shard

SWEEPS = Path(__file__).parents[2] / "sweeps"


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
        ("quick", 18),
        ("induction_cells", 8640),
        ("classification_cells", 12960),
    ],
)
def test_the_sweeps_have_the_papers_sizes(name, count):
    points = read_sweep(SWEEPS / f"{name}.yaml").points()
    assert len(points) == len({point.hash for point in points}) == count


@pytest.mark.parametrize("task", ["induction", "classification"])
def test_the_main_sweep_is_part_of_the_whole(task):
    whole, main = (read_sweep(SWEEPS / f"{task}{suffix}.yaml").points() for suffix in ("", "_main"))
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
    plain, by_cell = (read_sweep(SWEEPS / f"{task}{suffix}.yaml") for suffix in ("", "_cells"))
    assert {point.hash for point in plain.points()} == {point.hash for point in by_cell.points()}
    assert len(list(by_cell._grid())) == cells


def test_points_may_be_cells(tmp_path):
    path = write(tmp_path, {"seed": {"values": [[0, 1], 5]}, "lr": {"value": [0.1, 0.2, 0.1]}})
    points = [(p.lr, p.seed) for p in read_sweep(path).points()]
    assert points == [(0.1, 0), (0.1, 1), (0.2, 0), (0.2, 1), (0.1, 5), (0.2, 5)]


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


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_distributions_are_those_that_wandb_documents(name):
    rng = np.random.default_rng(0)
    spec = {
        "log_uniform": {"min": np.log(2), "max": np.log(8)},
        "normal": {"mu": 4, "sigma": 0.1},
        "log_normal": {"mu": np.log(4), "sigma": 0.1},
    }.get(name, {"min": 2, "max": 8})
    values = np.array([DISTRIBUTIONS[name](spec, rng) for _ in range(4000)])
    assert 2 <= values.min() < values.max() <= 8
    medians = {"uniform": 5, "int_uniform": 5}
    assert np.median(values) == pytest.approx(medians.get(name, 4), rel=0.05)


@pytest.mark.parametrize("n", [1, 2, 5, 7, 18])
def test_shards_are_disjoint_and_cover_the_grid(n):
    points = read_sweep(SWEEPS / "quick.yaml").points()
    parts = [shard(points, f"{i}/{n}") for i in range(1, n + 1)]
    assert sorted(p.hash for part in parts for p in part) == sorted(p.hash for p in points)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert all(part == [p for p in points if p in part] for part in parts)  # in the sweep's order


def test_shards_keep_together_what_can_be_one_stack():
    points = read_sweep(SWEEPS / "classification_main.yaml").points()
    stacks = make_stacks(points, None)
    for i in (1, 2, 3):
        part = set(shard(points, f"{i}/3"))
        cut = [stack for stack in stacks if 0 < len(part & set(stack)) < len(stack)]
        assert len(cut) <= 2
    shapes = {p.attention_type for p in shard(points, "1/20")}
    assert len(shapes) > 3  # not one type's alone, which may be slow


def test_more_shards_than_runs_are_refused():
    points = read_sweep(SWEEPS / "quick.yaml").points()
    assert len(shard(points, "18/18")) == 1
    with pytest.raises(ConfigError, match="shard=20/20 asks for more parts than the sweep has runs; use at most 18"):
        shard(points, "20/20")


@pytest.mark.parametrize("which", ["0/2", "3/2", "1", "a/b", "1/0", "-1/2", "1/2/3", ""])
def test_shards_out_of_range(which):
    with pytest.raises(ConfigError, match=re.escape(f"shard={which} must be i/n with i from 1 to n, like 1/4")):
        shard([], which)


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
        ("method: grid\nparameters: {lr: 1}", "parameter lr of .* needs value, values, or min and max"),
        ("method: grid\nparameters: {lr: {values: 1}}", "values of lr must be a list"),
        ("method: grid\nparameters: {lr: {values: []}}", "values of lr must be a list that is not empty"),
        ("method: grid\nparameters: {seed: {values: [[]]}}", "seed=.. is an empty list; give at least one value"),
        (
            "method: grid\nparameters: {num_heads: {values: [[1, 2]]}}",
            "num_heads=.1, 2. is a list, which only seed, lr, aux_loss_weight may be",
        ),
        ("method: grid\nparameters: {lr: {values: [fast]}}", "lr=fast must be a number"),
        ("method: grid\nparameters: {lr: {min: 0.1, max: 1}}", "parameter lr of a grid needs"),
        ("method: grid\nparameters: {positional_type: {values: [no]}}", "YAML reads no as False"),
        ("method: grid\nparameters: {num_heads: {values: [4, 3]}}", "embed_dim=128 must be a multiple of num_heads=3"),
        ("method: random\nparameters: {lr: {min: 0.1, max: 1}}", "give .* a run_cap"),
        ("method: random\nrun_cap: 0\nparameters: {lr: {min: 0.1, max: 1}}", "give .* a run_cap"),
        ("method: random\nrun_cap: 1\nparameters: {lr: {min: 0.1}}", "unknown or lacks 'max'"),
        ("method: random\nrun_cap: 1\nparameters: {lr: {min: 1, max: 2, distribution: zipf}}", "distribution=zipf"),
        ("method: random\nrun_cap: 1\nparameters: {lr: {min: a, max: 2}}", "cannot be drawn from min=a, max=2"),
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


def test_unreadable_files(tmp_path):
    for path in (tmp_path, tmp_path / "missing.yaml"):
        with pytest.raises(ConfigError, match="cannot read the sweep file"):
            read_sweep(path)
    binary = tmp_path / "binary"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="cannot read the sweep file"):
        read_sweep(binary)
