import json
import math
import sqlite3

import pandas as pd
import pytest
from rows import A, B, finish, other_process
from tiny import tiny

from src.runs import LogError, RunLog, export, load_runs
from src.runs.__main__ import main


@pytest.fixture
def log(tmp_path):
    return RunLog(tmp_path / "deep" / "runs.db")


def test_a_run_is_written_and_read_back(log):
    finish(log, A, note=3.0)
    assert log.row(A) == {
        "state": "finished",
        "summary": {"eval/loss": 0.5, "note": 3.0},
        "history": [
            {"epoch": 0, "step": 0, "eval/loss": 1.5},
            {"epoch": 1, "step": 4, "eval/loss": 0.5},
        ],
    }
    table = load_runs(log.path, history=True)
    row = table.loc[0]
    assert {name: row[name] for name, value in A.to_dict().items() if value is not None} == {
        name: value for name, value in A.to_dict().items() if value is not None
    }
    assert (row["hash"], row["state"], row["seconds"], row["eval/loss"]) == (A.hash, "finished", 2.5, 0.5)
    assert row["history/eval/loss"] == [1.5, 0.5]
    assert row["torch"]
    assert row["device"]
    assert "history/eval/loss" not in load_runs(log.path)


def test_a_second_attempt_replaces_what_the_first_left(log):
    log.start(A, "cpu")
    log.add_epoch(A, 0, {"epoch": 0, "eval/loss": 9.0})
    finish(log, A)
    assert len(load_runs(log.path)) == 1
    assert [epoch["eval/loss"] for epoch in log.row(A)["history"]] == [1.5, 0.5]


def test_numbers_that_are_not_finite_survive(log):
    finish(log, A, worst=math.inf, none=math.nan)
    assert log.row(A)["summary"]["worst"] == math.inf
    assert math.isnan(log.row(A)["summary"]["none"])


@pytest.mark.parametrize("history", [True, False])
def test_export_and_load_give_the_same_table(log, tmp_path, history):
    finish(log, A)
    finish(log, B, epochs=3, **{"eval/acc": 0.25})
    assert export(log.path, tmp_path / "out" / "table.parquet") == 2
    as_lists = {name: list for name in load_runs(log.path, history).columns if name.startswith("history/")}
    table = load_runs(tmp_path / "out" / "table.parquet", history)
    for name in as_lists:  # Parquet gives arrays
        table[name] = table[name].map(list, na_action="ignore")
    pd.testing.assert_frame_equal(table, load_runs(log.path, history), check_dtype=False)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["table.parquet"]


def test_which_runs_are_settled(log):
    states = ["finished", "diverged", "failed", "interrupted"]
    configs = [tiny(seed=seed) for seed in range(4)]
    for config, state in zip(configs, states, strict=True):
        log.start(config, "cpu")
        log.end(config, state, {})
    log.start(A.__class__(seed=9), "cpu")
    assert sorted(log.states().values()) == sorted([*states, "running"])
    assert sorted(log.states(settled_since=0).values()) == ["diverged", "failed", "finished"]
    assert sorted(log.states(settled_since=math.inf).values()) == ["diverged", "finished"]  # failed ones again
    assert log.states(settled_since=0, of=configs[2]) == {configs[2].hash: "failed"}


def test_a_claim_keeps_others_away_and_ends_with_its_process(log):
    with other_process(lambda: RunLog(log.path).claim(A), lambda: 1) as act:
        assert act()
        assert not log.claim(A)
        assert log.claim(B)
    assert log.claim(A, wait=True)
    with other_process(*(lambda c=c: RunLog(log.path).claim(c) for c in (A, B, B))) as act:
        assert [act(), act()] == [False, False]
        log.release(B)
        assert act()


def rewrite(log, **old_fields):
    """Make the log one of a time when RunConfig had other fields."""
    fields = {name: value for name, value in A.to_dict().items() if name not in ("precision", *old_fields)}
    config = json.dumps(fields | old_fields)
    with sqlite3.connect(log.path) as db:
        db.execute("UPDATE runs SET hash = 'old', config = ?", [config])
        db.execute("UPDATE history SET hash = 'old'")
        db.execute("UPDATE schema SET fields = '[]'")


def test_logs_of_an_older_schema_go_on(log):
    """A field that is new has its default in old rows: they are finished, and not trained again."""
    finish(log, A)
    rewrite(log)
    again = RunLog(log.path)
    assert again.states() == {A.hash: "finished"}
    assert len(again.row(A)["history"]) == 2
    assert load_runs(log.path)["precision"].tolist() == ["float32"]


def test_rows_with_a_field_that_is_no_more_stay_as_they_are(log):
    finish(log, A)
    rewrite(log, dropout=0.1)
    assert RunLog(log.path).states() == {"old": "finished"}
    assert load_runs(log.path)["dropout"].tolist() == [0.1]


def test_a_log_of_newer_code_is_refused(log):
    with sqlite3.connect(log.path) as db:
        db.execute("PRAGMA user_version = 99")
    with pytest.raises(LogError, match="was written by newer code"):
        RunLog(log.path)


def test_foreign_and_broken_files_are_refused_and_left_alone(tmp_path):
    foreign, text = tmp_path / "foreign.db", tmp_path / "text.db"
    with sqlite3.connect(foreign) as db:
        db.execute("CREATE TABLE runs (a)")
    text.write_text("This is no database, but long enough to be taken for one. " * 50)
    before = foreign.read_bytes(), text.read_bytes()
    for path, sentence in ((foreign, "is a database of something else"), (text, "cannot open the run log")):
        with pytest.raises(LogError, match=sentence):
            RunLog(path)
    assert before == (foreign.read_bytes(), text.read_bytes())
    with pytest.raises(LogError, match="cannot open the run log"):
        RunLog(tmp_path)


def test_a_full_disk_is_one_sentence_and_costs_nothing_that_was_logged(log):
    finish(log, A)
    (pages,) = log.db.execute("PRAGMA page_count").fetchone()
    log.db.execute(f"PRAGMA max_page_count = {pages}")
    log.start(B, "cpu")
    with pytest.raises(LogError, match="cannot use the run log .*full.*; what it holds is kept"):  # noqa: PT012
        for epoch in range(1000):
            log.add_epoch(B, epoch, {"eval/loss": 0.1} | {f"{i}_metric": 0.5 for i in range(100)})
    assert load_runs(log.path).set_index("hash").loc[A.hash, "state"] == "finished"
    log.db.execute("PRAGMA max_page_count = 1000000")
    finish(log, B)  # there is space again
    assert set(log.states().values()) == {"finished"}


def test_logs_of_shards_are_one_table_with_each_run_once(tmp_path):
    """Of a run that two logs have, the one that got furthest."""
    one, two = (RunLog(tmp_path / f"shard-{i}.db") for i in (1, 2))
    finish(one, A)
    two.start(A, "cpu")
    finish(two, B)
    table = load_runs(tmp_path / "shard-*.db", history=True).set_index("hash")
    assert sorted(table.index) == sorted([A.hash, B.hash])
    assert set(table["state"]) == {"finished"}
    assert table["history/eval/loss"].tolist() == [[1.5, 0.5]] * 2
    assert export(str(tmp_path / "shard-*.db"), tmp_path / "all.parquet") == 2


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("missing.db", "there is no run log missing.db; train.py makes one"),
        ("missing.parquet", "there is no table missing.parquet"),
        ("shard-*.db", r"no run log matches shard-\*.db; train.py makes logs"),
        ("nonsense", "nonsense is no source of runs: give a run log"),
        ("a/b", "a/b is no source of runs"),
        ("/a/b/c", "/a/b/c is no source of runs"),
    ],
)
def test_sources_that_are_none(source, sentence, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(LogError, match=sentence):
        load_runs(source)
    assert not list(tmp_path.iterdir())


def test_a_parquet_file_that_is_none(tmp_path):
    (tmp_path / "broken.parquet").write_text("no table")
    with pytest.raises(LogError, match="cannot read the table"):
        load_runs(tmp_path / "broken.parquet")


def test_export_on_the_command_line(log, tmp_path, capsys):
    finish(log, A)
    assert main(["export", str(log.path), str(tmp_path / "table.parquet")]) == 0
    assert "1 runs written to" in capsys.readouterr().out
    assert main(["export", "missing.db", str(tmp_path / "table.parquet")]) == 1
    assert capsys.readouterr().err.startswith("error: there is no run log")
    assert main(["export", str(log.path), "table.txt"]) == 2
