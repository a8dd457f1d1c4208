"""Logs that several processes and versions of the code use, and what may happen to their files meanwhile."""

import functools
import json
import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from rows import A, B, finish, other_process
from tiny import tiny

from src.config import IN_EVERY_HASH
from src.runs import LogError, RunLog, load_runs
from src.runs.log import name_of, seconds_of
from src.runs.merge import import_runs
from src.training.loop import Observer
from src.training.workers import Job, execute

ROOT = Path(__file__).parents[2]


def dump(path):
    with sqlite3.connect(path) as db:
        return [db.execute(f"SELECT * FROM {name}").fetchall() for name in ("runs", "history", "schema")]


NEWER = """
import sys
from src.runs import RunLog, load_runs
from tiny import tiny
assert load_runs(sys.argv[1])["dropout"].tolist() == [0.0]
log = RunLog(sys.argv[1])
assert log.states() == {tiny(seed=1).hash: "finished"}, "a new field is a new identity"
log.start(tiny(seed=1, dropout=0.5), "cpu")
log.end(tiny(seed=1, dropout=0.5), "finished", {})
log.start(tiny(seed=5, dropout=0.5), "cpu")
"""


def test_code_with_one_more_field_beside_this_one(tmp_path):
    """It finds what is finished, rewrites nothing, and its own rows survive here, where nobody trains them."""
    log = RunLog(tmp_path / "runs.db")
    finish(log, A)
    before = dump(log.path)
    for folder in ("src", "tests"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("data", "__pycache__"))
    shutil.copy(ROOT / "train.py", tmp_path)
    config = tmp_path / "src" / "config.py"
    field = '    precision: Literal["float32", "tf32", "bf16"] = "float32"\n'
    assert config.read_text().count(field) == 1
    config.write_text(config.read_text().replace(field, field + "    dropout: float = 0.0\n"))
    newer = f"import sys; sys.path[:0] = [{str(tmp_path)!r}, {str(tmp_path / 'tests')!r}]\n{NEWER}"
    subprocess.run([sys.executable, "-c", newer, log.path], cwd=tmp_path, check=True)

    runs, history, schema = dump(log.path)
    assert ([runs[0]], history, schema) == tuple(before)
    assert json.loads(schema[0][0]) == list(IN_EVERY_HASH)
    assert log.states().pop(A.hash) == "finished"
    assert len(RunLog(log.path).states()) == 3
    table = load_runs(log.path)
    assert table["dropout"].fillna(0).tolist() == [0.0, 0.5, 0.5]
    newer_pid = int(table["process"].iloc[-1].rpartition(":")[2])
    assert log.running(newer_pid) == []  # nobody here can train it
    other = RunLog(tmp_path / "other.db")
    assert import_runs([log.path], other.path) == {"written": 2, "not ended": 1}
    assert load_runs(other.path)["dropout"].fillna(0).tolist() == [0.0, 0.5]
    assert other.states().keys() < log.states().keys()


@pytest.mark.parametrize("look", range(1, 6))
def test_a_log_that_others_make_at_the_same_moment(look, tmp_path, monkeypatch):
    """Before the first, second, ... look at the file that this process takes."""
    path, looks = tmp_path / "runs.db", []

    class Looking(sqlite3.Connection):
        def execute(self, *arguments):
            looks.append(arguments)
            if len(looks) == look:
                monkeypatch.undo()
                finish(RunLog(path), A)
            return super().execute(*arguments)

    monkeypatch.setattr(sqlite3, "connect", functools.partial(sqlite3.connect, factory=Looking))
    assert RunLog(path).states() == {A.hash: "finished"}


@pytest.mark.parametrize("how", ["moved", "deleted", "replaced"])
def test_a_log_that_is_gone_ends_the_work(how, tmp_path):
    log = RunLog(tmp_path / "runs.db")
    finish(log, A)
    log.start(B, "cpu")
    if how == "replaced":
        RunLog(tmp_path / "other.db")
        os.replace(tmp_path / "other.db", log.path)
    elif how == "moved":
        os.rename(log.path, tmp_path / "moved.db")
    else:
        os.remove(log.path)
    for use in (lambda: log.end(B, "finished", {}), log.states, lambda: log.add_epoch(A, 9, {})):
        with pytest.raises(
            LogError, match=r"runs.db was moved, deleted or replaced while it was in use; a moved one has"
        ):
            use()
    if how == "moved":
        with pytest.warns(UserWarning, match="without its moved.db-wal"):
            assert load_runs(tmp_path / "moved.db")["state"].tolist() == ["finished", "finished"]


def test_a_sweep_whose_log_is_deleted_says_so(tmp_path, monkeypatch):
    log = RunLog(tmp_path / "runs.db")

    class Deleter(Observer):
        def on_epoch(self, epoch, results):
            os.remove(log.path)

    with pytest.raises(LogError, match="was moved, deleted or replaced"):
        execute([A], log, "cpu", [[Deleter()]])


def test_links_to_a_log(tmp_path):
    """A symbolic one is the log, with one lock file and one -wal; a hard one is refused."""
    log = RunLog(tmp_path / "runs.db")
    finish(log, A)
    (tmp_path / "elsewhere").mkdir()
    link = tmp_path / "elsewhere" / "link.db"
    link.symlink_to(log.path)
    other = RunLog(link)
    assert other.claim(A)
    assert other.locks.path == log.locks.path
    assert other.states() == log.states()
    assert load_runs(link)["hash"].tolist() == [A.hash]
    assert os.listdir(link.parent) == ["link.db"]
    os.link(log.path, tmp_path / "hard.db")
    with pytest.raises(LogError, match="has another name, a hard link.*make it a symbolic link"):
        RunLog(tmp_path / "hard.db")
    (tmp_path / "circle.db").symlink_to(tmp_path / "circle.db")
    with pytest.raises(LogError, match="cannot open the run log"):
        RunLog(tmp_path / "circle.db")


def test_a_removed_lock_file_lets_nobody_train_a_run_twice(tmp_path):
    log = RunLog(tmp_path / "runs.db")
    free, first, second = tiny(seed=3), tiny(seed=1), tiny(seed=2)
    held = []

    def begin():
        held.append(RunLog(log.path))
        for config in (first, second):
            assert held[0].claim(config)
            held[0].start(config, "cpu")
        return True

    with other_process(begin, lambda: held[0].add_epoch(first, 0, {}) is None) as act:
        assert act()
        os.remove(log.locks.path)
        assert [log.claim(config) for config in (first, second, free)] == [False, False, True]
        assert act()  # it goes on, and holds its locks in the new file
        assert not log.locks.take(first.hash)
        assert not log.locks.take(second.hash)
        os.remove(log.locks.path)
        assert log.claim(free)  # as do we in the next one
    assert log.claim(first)
    assert log.claim(second, wait=True)


@pytest.mark.parametrize("told_by", ["the system", "ps", "nobody"])
def test_a_process_that_has_the_number_of_a_dead_trainer_keeps_no_run(told_by, tmp_path, monkeypatch):
    if told_by != "the system":
        monkeypatch.setattr("src.runs.log.PROCESSES", tmp_path / "none")
        monkeypatch.setenv("PATH", f"{tmp_path}")
    if told_by == "ps":
        (tmp_path / "ps").write_text("#!/bin/sh\necho '   01:40'\n")
        (tmp_path / "ps").chmod(0o755)
    log = RunLog(tmp_path / "runs.db")
    log.start(A, "cpu")
    log.db.execute("UPDATE runs SET process = ?", [name_of(os.getppid())])
    assert not log.claim(A)
    log.db.execute("UPDATE runs SET started = 1")  # long before that process
    assert log.claim(A) == (told_by != "nobody")


@pytest.mark.parametrize(
    ("elapsed", "seconds"), [("   01:40\n", 100), ("02:00:05", 7205), ("11-01:00:00", 11 * 86400 + 3600)]
)
def test_how_ps_writes_a_time(elapsed, seconds):
    assert seconds_of(elapsed) == seconds


def test_what_is_no_time_is_refused():
    with pytest.raises(ValueError, match="invalid literal"):
        seconds_of("")


def test_a_run_that_another_process_has_taken_is_left_to_it(tmp_path):
    log = RunLog(tmp_path / "runs.db")
    log.start(A, "cpu")
    log.db.execute("UPDATE runs SET process = 'elsewhere:1'")
    for act in (lambda: log.add_epoch(A, 0, {}), lambda: log.end(A, "failed", {})):
        with pytest.raises(LogError, match="has lost the run .* to another process"):
            act()
    log.give_up(A, os.getpid(), "a process of this number had it once")
    assert log.states() == {A.hash: "running"}
    log.db.execute("DELETE FROM runs")
    with pytest.raises(LogError, match="has lost the run"):
        log.end(A, "finished", {})


def test_what_has_ended_stays_as_it_is(tmp_path):
    log = RunLog(tmp_path / "runs.db")
    finish(log, A)
    with pytest.raises(LogError, match="has lost the run"):
        log.end(A, "interrupted", {})
    log.give_up(A, os.getpid(), "it died when all was done")
    assert log.row(A) == {"state": "finished", "summary": {"eval/loss": 0.5}, "history": log.row(A)["history"]}


def test_what_has_failed_is_settled_though_the_clock_is_set_back(tmp_path, monkeypatch):
    log = RunLog(tmp_path / "runs.db")
    log.start(A, "cpu")
    log.end(A, "failed", {})
    job = Job([[A], [B]], log.path)
    assert not log.states(settled_since=job.began)
    monkeypatch.setattr("time.time", lambda: 0.0)
    for config in (A, B):
        log.start(config, "cpu")
        log.add_epoch(config, 3, {})
    assert log.epochs(job.began) == {A.hash: 3, B.hash: 3}
    log.end(A, "failed", {})
    assert log.states(settled_since=job.began) == {A.hash: "failed"}
    log.start(A, "cpu")
    log.end(A, "failed", {})
    assert log.states(settled_since=job.began) == {A.hash: "failed"}
    assert not log.states(settled_since=log.attempts())
