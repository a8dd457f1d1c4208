"""Runs of tables and other logs brought into a log: they count as done, and nothing is written twice or in part."""

import contextlib
import json
import threading
import time

import pandas as pd
import pytest
from rows import A, B, finish, other_process
from tiny import tiny

from src.runs import RunLog, export, load_runs
from src.runs.__main__ import main
from src.runs.identity import hash_without
from src.runs.merge import import_runs
from src.training.workers import Job, run_job


@pytest.fixture
def table(tmp_path):
    """Two finished runs, one diverged, one interrupted and one that is under way."""
    log = RunLog(tmp_path / "source.db")
    finish(log, A)
    finish(log, B, epochs=3)
    for seed, state in ((5, "diverged"), (6, "interrupted")):
        log.start(tiny(seed=seed), "cpu")
        log.add_epoch(tiny(seed=seed), 0, {"epoch": 0, "eval/loss": float("nan")})
        log.end(tiny(seed=seed), state, {"eval/loss": float("nan")}, 1.0, "an error")
    log.start(tiny(seed=8), "cpu")
    export(log.path, tmp_path / "table.parquet")
    return tmp_path / "table.parquet"


def ended(runs):
    return runs[runs["state"].isin(["finished", "diverged", "failed"])].reset_index(drop=True)


def test_what_is_imported_is_what_was_exported_and_a_sweep_trains_the_rest(table, tmp_path):
    log = RunLog(tmp_path / "runs.db")
    assert import_runs([table], log.path) == {"written": 3, "not ended": 2}
    expected = ended(load_runs(table, history=True))
    pd.testing.assert_frame_equal(
        load_runs(log.path, history=True)[expected.columns], expected
    )  # device, code and time
    assert import_runs([table], log.path) == {"there": 3, "not ended": 2}
    job = Job([[A], [B], [tiny(seed=3)]], log.path)
    for _ in run_job(job, 1):
        pass
    after = load_runs(log.path, history=True)
    pd.testing.assert_frame_equal(after[:3][expected.columns], expected)
    assert after["seed"].tolist()[3:] == [3]


def test_logs_are_merged_and_the_furthest_row_stays(tmp_path):
    logs = one, two, into = [RunLog(tmp_path / name) for name in ("one.db", "two.db", "into.db")]
    for log, state in zip(logs, ("finished", "failed", "interrupted"), strict=True):
        log.start(A, "cpu")
        log.end(A, state, {})
    finish(two, B)
    finish(into, B, epochs=3)
    assert import_runs([two.path], into.path) == {"written": 1, "there": 1}
    assert into.states() == {A.hash: "failed", B.hash: "finished"}
    assert import_runs([str(tmp_path / "*o*.db")], into.path) == {"written": 1, "there": 1}
    assert into.states() == {A.hash: "finished", B.hash: "finished"}
    assert len(into.row(B)["history"]) == 3


def test_a_run_under_way_is_left_to_its_process(table, tmp_path):
    log = RunLog(tmp_path / "runs.db")
    with other_process(lambda: RunLog(log.path).claim(A)) as act:
        assert act()
        assert import_runs([table], log.path) == {"busy": 1, "written": 2, "not ended": 2}
        assert A.hash not in log.states()


def test_a_history_that_is_empty(table, tmp_path):
    runs = load_runs(table, history=True)
    runs["history/eval/loss"] = [[]] * len(runs)
    runs.to_parquet(table)
    assert import_runs([table], tmp_path / "runs.db")["written"] == 3
    assert [epoch.keys() for epoch in RunLog(tmp_path / "runs.db").row(A)["history"]] == [{"epoch", "step"}] * 2


def test_a_table_of_an_older_schema(tmp_path):
    """Its hashes lack a field, and so does it: it has the default."""
    row = A.to_dict() | {"state": "finished", "hash": hash_without(A, {"precision"})}
    del row["precision"]
    pd.DataFrame([row]).to_parquet(tmp_path / "old.parquet")
    assert load_runs(tmp_path / "old.parquet")["hash"].tolist() == [A.hash]
    log = RunLog(tmp_path / "runs.db")
    assert import_runs([tmp_path / "old.parquet"], log.path) == {"written": 1}
    assert log.states() == {A.hash: "finished"}


@pytest.mark.parametrize("lacks", ["optimizer", "weight_decay", "use_residual", "lr"])
def test_a_row_whose_hash_contradicts_its_config_is_no_other_run(lacks, tmp_path):
    """Its table has lost a column: the default is not put in its place."""
    other = tiny(seed=1, lr=0.02, optimizer="sgd", weight_decay=0.2, use_residual=False)
    rows = [config.to_dict() | {"hash": config.hash, "state": "finished"} for config in (other, B)]
    pd.DataFrame(rows).drop(columns=lacks).to_parquet(tmp_path / "table.parquet")
    runs = load_runs(tmp_path / "table.parquet").set_index("hash")
    if lacks in runs:  # what every hash has depends on the task: nothing is put in its place
        assert pd.isna(runs.loc[other.hash, lacks])
        assert runs.loc[B.hash, lacks] == getattr(B, lacks)
    log = RunLog(tmp_path / "runs.db")
    assert import_runs([tmp_path / "table.parquet"], log.path) == {"written": 1, "other code": 1}
    assert log.states() == {B.hash: "finished"}


def test_a_table_of_a_time_before_optimizers(tmp_path):
    rows = [config.to_dict() | {"hash": config.hash, "state": "finished"} for config in (A, B)]
    later = ["optimizer", "weight_decay", "beta2", "use_residual", "use_bos", "source"]
    pd.DataFrame(rows).drop(columns=later).to_parquet(tmp_path / "old.parquet")
    assert load_runs(tmp_path / "old.parquet")["optimizer"].tolist() == ["adamw"] * 2
    log = RunLog(tmp_path / "runs.db")
    assert import_runs([tmp_path / "old.parquet"], log.path) == {"written": 2}
    assert json.loads(log.db.execute("SELECT config FROM runs").fetchone()[0]) in (A.to_dict(), B.to_dict())


def test_a_table_of_newer_code_keeps_its_names_and_is_not_trained_here(tmp_path):
    rows = [
        c.to_dict() | {"state": "finished", "hash": h, "dropout": d}
        for c, h, d in ((A, A.hash, None), (A, "a" * 16, 0.5))
    ]
    pd.DataFrame(rows).to_parquet(tmp_path / "new.parquet")
    log = RunLog(tmp_path / "runs.db")
    assert import_runs([tmp_path / "new.parquet"], log.path) == {"written": 2}
    assert log.states() == {A.hash: "finished", "a" * 16: "finished"}
    assert sorted(load_runs(log.path)["dropout"].dropna()) == [0.5]


def test_a_table_logged_by_wandb(tmp_path):
    """Runs of this code by their config, whatever their names, repeats once; other code's are not taken for ours."""
    config = {name: str(value) for name, value in A.to_dict().items() if value is not None}
    rows = [
        config | {"hash": name, "state": "finished", "eval/loss": "NaN", "started": 1.0} for name in ("ab12", "cd34")
    ]
    rows += [{"seed": "1", "lr": "0.01", "hash": "ef56", "state": "finished", "task": "induction"}]
    rows += [config | {"seed": "2", "hash": "gh78", "state": "crashed"}]
    pd.DataFrame(rows).to_parquet(tmp_path / "wandb.parquet")
    log = RunLog(tmp_path / "runs.db")
    assert import_runs([tmp_path / "wandb.parquet"], log.path) == {"written": 1, "other code": 1, "not ended": 1}
    assert log.states() == {A.hash: "finished"}
    assert log.row(A)["history"] == []


def begin(act):
    with contextlib.suppress(AssertionError, OSError):  # it is killed
        act()


def test_a_killed_import_goes_on_and_nothing_is_in_part(tmp_path):
    many, log = RunLog(tmp_path / "many.db"), RunLog(tmp_path / "runs.db")
    row = {"state": "finished", "summary": "{}", "started": 1.0, "process": "", "device": "", "torch": ""}
    configs = [tiny(seed=seed) for seed in range(600)]
    many.add_runs([(c.hash, row | {"config": json.dumps(c.to_dict())}, [{"eval/loss": 1.0}] * 3) for c in configs])
    for _ in range(2):
        before = len(log.states())
        with other_process(lambda: import_runs([many.path], log.path)) as act:
            threading.Thread(target=begin, args=[act], daemon=True).start()
            while len(log.states()) == before:
                time.sleep(0.002)
        assert len(log.states()) < 600
        epochs = load_runs(log.path, history=True)["history/eval/loss"]
        assert (epochs.map(len) == 3).all()
    import_runs([many.path], log.path)
    pd.testing.assert_frame_equal(load_runs(log.path, history=True), load_runs(many.path, history=True))


def test_on_the_command_line(table, tmp_path, capsys):
    path = str(tmp_path / "new" / "runs.db")
    assert main(["import", str(table), path]) == 0
    assert capsys.readouterr().out == f"3 runs written to {path}; 2 that have not ended left out\n"
    assert main(["import", str(table), path]) == 0
    assert "0 runs written to" in capsys.readouterr().out
    assert main(["import", "missing.parquet", str(tmp_path / "other.db")]) == 1
    assert capsys.readouterr().err.startswith("error: there is no table missing.parquet")
    assert not (tmp_path / "other.db").exists()
    for wrong in (["import", path], ["import", path, "table.parquet"], ["import"], []):
        assert main(wrong) == 2
        assert "usage: python -m src.runs" in capsys.readouterr().err
    assert main(["export", str(table), path, str(tmp_path / "all.csv")]) == 0
    assert len(load_runs(tmp_path / "all.csv")) == 5
