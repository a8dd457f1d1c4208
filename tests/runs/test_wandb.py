"""W&B: logged to, read from, and never a reason to lose a run."""

import math
import os
import shutil
import subprocess
import sys
import threading
import types
from pathlib import Path

import pandas as pd
import pytest
from tiny import options, tiny

from src.runs import LogError, RunLog, export, load_runs
from src.runs.columns import plain
from src.runs.wandb_reader import as_record, as_records
from src.training import wandb_logger
from src.training.wandb_logger import Connection, wandb_mode, wandb_observers
from src.training.workers import execute

ROOT = Path(__file__).parents[2]


class Run:
    """A run of W&B's client, all of whose calls are kept; those named in `broken` do not work."""

    def __init__(self, broken=()):
        self.calls, self.broken, self.summary = [], broken, self

    def __getattr__(self, name):
        def call(*args, **kwargs):
            self.calls.append((name, args, kwargs))
            if name in self.broken:
                raise ConnectionError("the server\nis gone")

        return call

    def names(self):
        return [name for name, _, _ in self.calls]


@pytest.fixture(autouse=True)
def _awake(monkeypatch):
    monkeypatch.setattr(Connection, "resting_until", -math.inf)


def install(monkeypatch, **attributes):
    module = types.ModuleType("wandb")
    vars(module).update(Error=RuntimeError, Settings=lambda **settings: settings, **attributes)
    monkeypatch.setitem(sys.modules, "wandb", module)


@pytest.mark.parametrize("broken", [(), ("log",), ("update",), ("finish",)])
def test_a_run_is_logged_and_survives_a_server_that_is_gone(broken, monkeypatch, tmp_path, capsys):
    run, asked = Run(broken), {}
    install(monkeypatch, init=lambda **kwargs: asked.update(kwargs) or run)
    config, log = tiny(), RunLog(tmp_path / "runs.db")
    assert execute([config], log, "cpu", [wandb_observers(config, "online")]) == ["finished"]
    assert len(log.row(config)["history"]) == 3
    assert asked["mode"] == "online"
    assert asked["config"] == {k: v for k, v in config.to_dict().items() if v is not None}
    calls = run.names()
    if not broken:
        assert calls == ["log", "log", "log", "update", "finish"]
        summary = run.calls[3][1][0]
        assert summary == log.row(config)["summary"] | {"state": "finished"}
        assert run.calls[4][2] == {"exit_code": 0}
    else:  # after the first failure W&B is left alone
        assert calls[-1] == broken[0]
        assert calls.count(broken[0]) == 1
        assert "(the server is gone); the local log has the run all the same" in capsys.readouterr().err


def test_a_login_that_fails_costs_nothing(monkeypatch, tmp_path, capsys):
    def init(**_):
        raise RuntimeError("no API key configured")

    install(monkeypatch, init=init)
    config, log = tiny(), RunLog(tmp_path / "runs.db")
    assert execute([config], log, "cpu", [wandb_observers(config, "online")]) == ["finished"]
    assert capsys.readouterr().err.count("no API key configured") == 1


def test_a_server_that_hangs_costs_its_patience_once(monkeypatch, capsys):
    run, wait = Run(), threading.Event()
    run.log = lambda results: wait.wait(60)
    install(monkeypatch, init=lambda **_: run)
    monkeypatch.setattr(wandb_logger, "PATIENCE", 0.05)
    (logger,) = wandb_observers(tiny(), "online")
    for epoch in range(3):
        logger.on_epoch(epoch, {})
    wait.set()
    assert capsys.readouterr().err.count("no answer in 0.05 s") == 1


def test_a_server_that_hangs_is_waited_for_once_by_all_members_of_a_stack(monkeypatch, capsys):
    begun, wait = [], threading.Event()
    install(monkeypatch, init=lambda **_: begun.append(1) or wait.wait(60))
    monkeypatch.setattr(wandb_logger, "PATIENCE", 0.05)
    for seed in range(4):
        wandb_observers(tiny(seed=seed), "online")
    assert len(begun) == 1
    assert capsys.readouterr().err.count("could not start a run") == 1
    monkeypatch.setattr(Connection, "resting_until", 0)  # ten minutes later
    wandb_observers(tiny(), "online")
    wait.set()
    assert len(begun) == 2


def test_an_epoch_is_logged_once_though_its_stack_starts_again(monkeypatch):
    run = Run()
    install(monkeypatch, init=lambda **_: run)
    (logger,) = wandb_observers(tiny(), "online")
    for epoch in (0, 1, 0, 1, 2):
        logger.on_epoch(epoch, {"epoch": epoch})
    assert [args[0]["epoch"] for name, args, _ in run.calls if name == "log"] == [0, 1, 2]


@pytest.mark.parametrize(
    ("asked", "variables", "mode"),
    [
        (None, {}, None),
        (None, {"WANDB_SWEEP_ID": "x"}, "online"),
        (None, {"WANDB_MODE": "offline"}, "offline"),
        (None, {"WANDB_MODE": "disabled", "WANDB_SWEEP_ID": "x"}, None),
        ("offline", {"WANDB_MODE": "online"}, "offline"),
        ("disabled", {"WANDB_SWEEP_ID": "x"}, None),
    ],
)
def test_who_wants_wandb(asked, variables, mode, monkeypatch):
    for name in ("WANDB_MODE", "WANDB_SWEEP_ID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert wandb_mode(asked) == mode


def test_offline_with_the_real_client(tmp_path):
    command = [sys.executable, str(ROOT / "train.py"), *options(tiny()), "--log=runs.db", "--wandb=offline"]
    done = subprocess.run(command, cwd=tmp_path, env=os.environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "W&B could not" not in done.stderr
    assert len(list((tmp_path / "wandb").glob("offline-run-*/*.wandb"))) == 1
    assert load_runs(tmp_path / "runs.db")["state"].tolist() == ["finished"]


def published(**changes):
    """A run as W&B's public API gives it."""
    values = {
        "id": "ab12",
        "state": "finished",
        "created_at": "2026-03-01T12:00:00Z",
        "config": {"seed": 1, "lr": 0.01, "_wandb": {}, "attention_type": "softmax"},
        "summary": {"eval/acc": 0.9, "_runtime": 12.5, "_step": 3, "picture": {"path": "x.png"}},
        "scan_history": lambda: iter([{"eval/acc": 0.5, "_step": 0}, {"eval/acc": 0.9, "train/loss": 1.0}]),
    }
    return types.SimpleNamespace(**values | changes)


def test_a_published_run_becomes_a_row():
    record = as_record(published(), history=True)
    assert record["history/eval/acc"] == [0.5, 0.9]
    assert [record[k] for k in ("hash", "seconds", "seed", "attention_type", "eval/acc")] == [
        "ab12",
        12.5,
        1,
        "softmax",
        0.9,
    ]
    assert not {"picture", "_wandb", "_step", "_runtime"} & record.keys()


def test_runs_of_other_code_say_their_task_by_what_they_measured():
    assert as_record(published(), history=False)["task"] == "classification"
    assert as_record(published(summary={"eval/acc_induction": 1.0}), history=False)["task"] == "induction"
    assert as_record(published(config={"task": "induction"}), history=False)["task"] == "induction"


def test_a_cell_that_has_not_ended_is_no_run():
    assert as_records(published(config={"seed": [0, 1], "lr": 0.01}), history=False) == []
    assert len(as_records(published(), history=False)) == 1


def test_a_sweep_is_read_as_one_table(monkeypatch):
    asked = []

    class Api:
        def __init__(self, timeout): ...

        def runs(self, path, filters, **_):
            asked.append((path, filters))
            return [published(id=str(i), config={"seed": i, "lr": 0.01}) for i in range(5)]

    install(monkeypatch, Api=Api)
    runs = load_runs("me/project/sweep1")
    assert asked == [("me/project", {"sweep": "sweep1"})]
    assert runs["hash"].tolist() == list("01234")
    assert runs["eval/acc"].tolist() == [0.9] * 5


def test_a_sweep_with_a_diverged_run_and_texts_for_numbers_is_exported(monkeypatch, tmp_path):
    """W&B gives NaN as a text, and numbers as texts where the YAML had texts."""
    diverged = {"eval/acc": "NaN", "train/loss": "Infinity", "_runtime": 1.0, "state": "diverged"}
    history = [{"eval/acc": 0.5, "train/loss": 2}, {"eval/acc": "NaN", "train/loss": "Infinity"}]

    class Api:
        def __init__(self, timeout): ...

        def runs(self, path, filters, **_):
            config = {"seed": "2", "lr": "1e-3", "num_heads": "4", "use_mlp": "true"}
            return [
                published(),
                published(id="cd34", config=config, summary=diverged, scan_history=lambda: iter(history)),
            ]

    install(monkeypatch, Api=Api)
    assert export("me/project/sweep1", tmp_path / "table.parquet") == 2
    row = load_runs(tmp_path / "table.parquet", history=True).iloc[1]
    assert [row[name] for name in ("seed", "lr", "num_heads", "state")] == [2, 0.001, 4, "diverged"]
    assert row["use_mlp"] is True
    assert math.isnan(row["eval/acc"])
    assert row["train/loss"] == math.inf
    assert math.isnan(row["history/eval/acc"][1])
    assert row["history/train/loss"] == [2, math.inf]


def test_without_a_login_reading_is_one_sentence(monkeypatch):
    def api(timeout):
        raise RuntimeError("api_key not configured\n(no-tty)")

    install(monkeypatch, Api=api)
    with pytest.raises(LogError, match=r"cannot read me/p/s from W&B \(api_key not configured \(no-tty\)\); try"):
        load_runs("me/p/s")


def test_a_cell_with_the_real_client_and_back(tmp_path):
    """Logged offline, its file is read as if the server had sent it: the rows of the local log."""
    one = [o for o in options(tiny(use_layernorm=False)) if not o.startswith(("--seed", "--lr"))]
    command = [sys.executable, str(ROOT / "train.py"), *one, "--seed=[0, 1]", "--lr=[0.01, 1e30]", "--stack=4"]
    done = subprocess.run(
        [*command, "--log=runs.db", "--wandb=offline"], cwd=tmp_path, env=os.environ, capture_output=True, text=True
    )
    assert done.returncode == 1, done.stderr  # two of the runs diverge
    assert "W&B could not" not in done.stderr
    (folder,) = (tmp_path / "wandb").glob("offline-run-*/files")  # one run for the cell
    (path,) = folder.rglob("*.table.json")

    class File:
        def __init__(self, name):
            self.name = name

        def download(self, root, replace):
            (Path(root) / self.name).parent.mkdir(parents=True)
            shutil.copy(folder / self.name, Path(root) / self.name)

    cell = types.SimpleNamespace(summary={"members": {"path": str(path.relative_to(folder))}}, file=File)
    for history in (False, True):
        back = plain(pd.DataFrame.from_records(as_records(cell, history))).set_index("hash").sort_index()
        local = load_runs(tmp_path / "runs.db", history).set_index("hash").sort_index()
        assert local["state"].tolist().count("diverged") == 2
        local = local.drop(columns="process").dropna(axis=1, how="all")
        pd.testing.assert_frame_equal(back[local.columns], local, check_dtype=False, check_index_type=False)
        assert set(back.dropna(axis=1, how="all").columns) == set(local.columns)
