"""Tables as others write them: each reads as the log that it came from."""

import json

import numpy as np
import pandas as pd
import pytest
from rows import A, B, finish
from tiny import tiny

from src.config import RunConfig
from src.runs import LogError, RunLog, export, load_runs
from src.runs.columns import is_measured, plain
from src.tasks import TASKS
from src.training.loop import train


@pytest.fixture
def log(tmp_path):
    """Two finished runs, of which one diverged in a metric, and a third that failed."""
    log, failed = RunLog(tmp_path / "runs.db"), tiny(seed=7)
    finish(log, A, **{"eval/acc_induction": 0.1 + 0.2, "eval/worst": float("inf")})
    finish(log, B, epochs=3, **{"eval/acc": float("nan")})
    log.start(failed, "cpu")
    log.end(failed, "failed", {}, error='a "text",\nof two lines')
    return log


def same(table, log, history=True):
    expected = load_runs(log.path, history)
    pd.testing.assert_frame_equal(table[expected.columns], expected)
    assert all(isinstance(dtype, np.dtype) for dtype in table.dtypes)
    return True


def as_pandas_guesses(runs, path):
    runs.convert_dtypes().to_parquet(path)  # Int64, boolean, string


def with_categories(runs, path):
    runs.astype({"attention_type": "category", "task": "category", "hash": "category"}).to_parquet(path)


def with_hashes_as_index(runs, path):
    runs.set_index("hash").to_parquet(path)


def joined_in_parts(runs, path):
    pd.concat([runs[:1], runs[1:]]).set_index(pd.Index([0, 0, 1])).to_parquet(path)


def as_texts(runs, path):
    values = [c for c in runs if not c.startswith("history/")]
    runs.astype(dict.fromkeys(values, object)).assign(
        **{name: runs[name].map(lambda v: None if v is None or v != v else str(v)) for name in values}
    ).to_parquet(path)


def twice(runs, path):
    pd.concat([runs, runs.assign(state="interrupted"), runs], ignore_index=True).to_parquet(path)


@pytest.mark.parametrize(
    "write", [as_pandas_guesses, with_categories, with_hashes_as_index, joined_in_parts, as_texts, twice]
)
def test_a_table_that_others_have_written(write, log, tmp_path):
    write(load_runs(log.path, history=True), tmp_path / "table.parquet")
    assert same(load_runs(tmp_path / "table.parquet", history=True), log)
    assert same(load_runs(tmp_path / "table.parquet"), log, history=False)


def test_a_csv_is_what_a_parquet_table_is(log, tmp_path):
    for name in ("table.csv", "table.parquet"):
        assert export(log.path, tmp_path / name) == 3
        assert same(load_runs(tmp_path / name, history=True), log)
        assert same(load_runs(tmp_path / name), log, history=False)
    assert sorted(path.name for path in tmp_path.iterdir() if "table" in path.name) == ["table.csv", "table.parquet"]


def test_hashes_that_look_like_numbers_stay_texts(tmp_path):
    hashes = ["1234567890123456", "12e4567890123456"]
    rows = [
        tiny(seed=i).to_dict() | {"hash": hash, "state": "finished", "torch": "2.10"} for i, hash in enumerate(hashes)
    ]
    pd.DataFrame(rows).to_csv(tmp_path / "table.csv", index=False)
    runs = load_runs(tmp_path / "table.csv")
    assert runs["hash"].tolist() == hashes
    assert runs["torch"].tolist() == ["2.10"] * 2


def test_a_folder_of_parts(log, tmp_path):
    runs = load_runs(log.path, history=True)
    runs.to_parquet(tmp_path / "parts", partition_cols=["task", "seed"])
    table = load_runs(tmp_path / "parts", history=True)
    assert same(table.sort_values("started", ignore_index=True), log)
    (tmp_path / "none").mkdir()
    with pytest.raises(LogError, match="has no Parquet files"):
        load_runs(tmp_path / "none")


def test_several_sources_are_one_table_with_each_run_once(log, tmp_path):
    """Of a run that several have, the row that got furthest."""
    other = RunLog(tmp_path / "other.db")
    finish(other, tiny(seed=7))
    export(log.path, tmp_path / "table.csv")
    runs = load_runs([tmp_path / "table.csv", other.path, str(log.path)], history=True)
    assert runs["seed"].tolist() == [1, 2, 7]
    assert runs["state"].tolist() == ["finished"] * 3
    assert runs["history/eval/loss"].map(len).tolist() == [2, 3, 2]
    assert runs["num_labels"].dtype == float
    assert runs["seed"].dtype == np.int64
    with pytest.raises(LogError, match="no source of runs was given"):
        load_runs([])


def test_repeats_of_an_agent_are_one_run():
    """W&B gives each its own name; those of other code are one if all of their config is."""
    ours = [A.to_dict() | {"hash": name, "state": "finished", "eval/acc": 1.0} for name in ("ab12", "cd34")]
    theirs = [
        {"seed": 1, "lr": 0.1, "decay": decay, "hash": f"x{i}", "state": "finished"}
        for i, decay in enumerate((0, 0, 1))
    ]
    from src.runs.identity import once, with_hashes

    assert once(with_hashes(plain(pd.DataFrame(ours))))["hash"].tolist() == [A.hash]
    assert once(with_hashes(plain(pd.DataFrame(theirs))))["hash"].tolist() == ["x0", "x2"]


@pytest.mark.parametrize(
    ("name", "cells", "read"),
    [
        ("lr", ["1e-3", 0.1], [0.001, 0.1]),
        ("num_heads", ["4", 2.0], [4, 2]),
        ("use_mlp", ["true", "False"], [True, False]),
        ("use_mlp", [1, 0], [True, False]),
        ("use_mlp", ["true", None], [True, None]),
        ("attention_type", ["softmax", float("nan")], ["softmax", None]),
        ("eval/loss", ["NaN", "-Infinity"], [np.nan, -np.inf]),
        ("eval/loss", ["Infinity", "1.5"], [np.inf, 1.5]),
        ("eval/loss", [None, 2], [np.nan, 2.0]),
        ("note", ["some", "1.0"], ["some", "1.0"]),
        ("note", [True, None], [True, None]),
        ("history/eval/loss", [["NaN", 1.5, None], None], [[np.nan, 1.5, np.nan], None]),
        ("history/eval/loss", [json.dumps([1.5, np.nan]), np.array([1, 2])], [[1.5, np.nan], [1, 2]]),
    ],
)
def test_what_comes_from_outside_becomes_what_its_column_is(name, cells, read):
    column = plain(pd.DataFrame({name: pd.Series(cells, dtype=object)}))[name]
    pd.testing.assert_series_equal(column, pd.Series(read, name=name, dtype=column.dtype))
    assert isinstance(column.dtype, np.dtype)


def test_a_column_of_texts_and_numbers_is_exported_as_texts(log, tmp_path):
    runs = load_runs(log.path).assign(note=["some", 1.5, None])
    runs.drop(columns="note").to_parquet(tmp_path / "table.parquet")
    from src.runs.table import _write_parquet

    _write_parquet(runs, tmp_path / "mixed.parquet")
    assert load_runs(tmp_path / "mixed.parquet")["note"].tolist() == ["some", "1.5", None]


def test_histories_are_rounded_to_what_float32_holds(tmp_path):
    log = RunLog(tmp_path / "runs.db")
    log.start(A, "cpu")
    log.add_epoch(A, 0, {"epoch": 0, "eval/loss": 0.1})
    log.end(A, "finished", {"eval/loss": 0.1})
    for name in ("table.parquet", "table.csv"):
        export(log.path, tmp_path / name)
        (row,) = load_runs(tmp_path / name, history=True).to_dict("records")
        assert row["history/eval/loss"] == [float(np.float32(0.1))]
        assert row["history/epoch"] == [0]
        assert row["eval/loss"] == 0.1


@pytest.mark.parametrize("task", TASKS)
def test_whatever_a_task_measures_is_known_as_a_result(task):
    """Else a table of its runs could not be imported: what is no result is of the config."""
    small = {"num_train": 64, "num_eval": 16, "num_epochs": 1, "batch_size": 32, "embed_dim": 16, "num_heads": 2}
    _, summary = train(RunConfig(task=task, **small))
    assert [name for name in summary if not is_measured(name)] == []
