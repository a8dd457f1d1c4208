"""Logs are read in whatever state they lie there, and reading writes nothing."""

import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from rows import A, B, finish

from src.runs import LogError, RunLog, load_runs, reader

KILLED = """
import os, sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute("UPDATE runs SET seconds = 7")
os._exit(1)
"""


def used(path, how):
    """A log of one finished run: closed, open, left by a killed process, or as its files were copied."""
    log = RunLog(path)
    finish(log, A)
    if how == "open":
        return log
    del log
    if how != "closed":
        subprocess.run([sys.executable, "-ISc", f"import sqlite3, sys\n{WAL}{KILLED}", path])
    if how == "killed, no -shm":
        os.remove(f"{path}-shm")
    return None


WAL = "sqlite3.connect(sys.argv[1]).execute('PRAGMA journal_mode = WAL')\n"
STATES = ["closed", "open", "killed", "killed, no -shm"]


def contents(folder):
    """All files, but for the memory that SQLite's processes share, which readers lock too."""
    return {path.name: path.read_bytes() if path.suffix != ".db-shm" else None for path in Path(folder).iterdir()}


@pytest.mark.parametrize("how", STATES)
def test_a_reader_writes_nothing(how, tmp_path):
    path = tmp_path / "runs.db"
    log = used(path, how)
    names = sorted(os.listdir(tmp_path))
    assert names == ["runs.db"] + {
        "open": ["runs.db-shm", "runs.db-wal"],
        "killed": ["runs.db-shm", "runs.db-wal"],
    }.get(how, ["runs.db-wal"] if how != "closed" else [])
    before = contents(tmp_path) if log is None else None  # to read the file would take the open log's locks
    runs = load_runs(path, history=True)
    assert runs["seconds"].tolist() == [7.0 if "killed" in how else 2.5]
    assert runs["history/eval/loss"].tolist() == [[1.5, 0.5]]
    assert sorted(os.listdir(tmp_path)) == names
    assert log is not None or contents(tmp_path) == before


def as_nobody(act):
    """Whether `act()` holds in a process that may write nothing of ours."""
    child = os.fork()
    if not child:
        status = 1
        try:
            if os.geteuid() == 0:
                os.setgid(65534)
                os.setuid(65534)
            status = 0 if act() else 1
        finally:
            os._exit(status)
    return os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize("how", STATES)
def test_a_log_in_a_folder_that_one_may_only_read(how):
    folder = tempfile.mkdtemp()
    try:
        log = used(Path(folder, "runs.db"), how)
        for path in Path(folder).iterdir():
            path.chmod(0o444)
        os.chmod(folder, 0o555)
        assert as_nobody(lambda: load_runs(f"{folder}/runs.db")["hash"].tolist() == [A.hash])
        assert log is None or log.states()
    finally:
        os.chmod(folder, 0o755)
        shutil.rmtree(folder)


def copied(log, folder, *sides):
    folder.mkdir()
    for side in ("", *sides):
        # by another process: to close the file here would release SQLite's locks
        subprocess.run(["cp", f"{log.path}{side}", folder / f"runs.db{side}"], check=True)
    return folder / "runs.db"


def test_a_copy_has_what_has_ended_and_without_its_wal_it_says_so(tmp_path):
    log = RunLog(tmp_path / "runs.db")
    finish(log, A)
    log.start(B, "cpu")
    with pytest.warns(UserWarning, match=r"without its runs.db-wal: runs may be missing; copy both files"):
        assert load_runs(copied(log, tmp_path / "alone"))["state"].tolist() == ["finished"]
    assert os.listdir(tmp_path / "alone") == ["runs.db"]
    assert sorted(load_runs(copied(log, tmp_path / "both", "-wal"))["state"]) == ["finished", "running"]
    log.end(B, "finished", {})
    path = log.path
    del log  # the last to leave makes the file whole
    shutil.copy(path, tmp_path / "closed.db")
    assert load_runs(tmp_path / "closed.db")["state"].tolist() == ["finished"] * 2
    assert sorted(os.listdir(tmp_path)) == ["alone", "both", "closed.db", "runs.db"]


def test_rows_and_histories_are_of_one_moment(tmp_path, monkeypatch):
    """Here a run ends after its row was read, and before its history is."""
    log, whole = RunLog(tmp_path / "runs.db"), reader._histories
    log.start(A, "cpu")
    log.add_epoch(A, 0, {"eval/loss": 1.5})

    def late(db):
        log.add_epoch(A, 1, {"eval/loss": 0.5})
        log.end(A, "finished", {})
        return whole(db)

    monkeypatch.setattr(reader, "_histories", late)
    (row,) = load_runs(log.path, history=True).to_dict("records")
    assert (row["state"], row["history/eval/loss"]) == ("running", [1.5])
    monkeypatch.undo()
    (row,) = load_runs(log.path, history=True).to_dict("records")
    assert (row["state"], row["history/eval/loss"]) == ("finished", [1.5, 0.5])


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "is empty and no run log; name another source"),
        (b"short", "is no run log"),
        (b"This is no database, but long enough to be taken for one. " * 50, "is no run log"),
        (b"SQLite format 3\0" + bytes(84), "cannot read the run log"),
    ],
)
def test_files_that_are_no_logs_stay_as_they_are(content, sentence, tmp_path):
    path = tmp_path / "runs.db"
    path.write_bytes(content)
    with pytest.raises(LogError, match=sentence):
        load_runs(path)
    assert contents(tmp_path) == {"runs.db": content}


def test_another_programs_database_is_none(tmp_path):
    with sqlite3.connect(tmp_path / "other.db") as db:
        db.execute("CREATE TABLE runs (a)")
    with pytest.raises(LogError, match="is a database of something else"):
        load_runs(tmp_path / "other.db")


def test_a_pattern_leaves_out_what_lies_beside_logs(tmp_path):
    log = RunLog(tmp_path / "runs.db")
    assert log.claim(A)  # makes the lock file
    finish(log, A)
    before = sorted(os.listdir(tmp_path))
    assert before == ["runs.db", "runs.db-lock", "runs.db-shm", "runs.db-wal"]
    assert load_runs(f"{tmp_path}/runs.db*")["hash"].tolist() == [A.hash]
    assert sorted(os.listdir(tmp_path)) == before
    assert os.path.getsize(tmp_path / "runs.db-lock") == 0


@pytest.mark.parametrize("folder", ["co [2026]", "what?", "st*r", "100%", "a#b"])
def test_a_path_that_exists_is_no_pattern(folder, tmp_path):
    (tmp_path / folder).mkdir()
    for name, config in (("one.db", A), ("two [2].db", B)):
        finish(RunLog(tmp_path / folder / name), config)
    assert load_runs(tmp_path / folder / "one.db")["hash"].tolist() == [A.hash]
    assert load_runs(tmp_path / folder / "two [2].db")["hash"].tolist() == [B.hash]
    assert len(load_runs(tmp_path / folder / "*.db")) == 2
    with pytest.raises(LogError, match="no run log matches"):
        load_runs(tmp_path / folder / "none-*.db")
