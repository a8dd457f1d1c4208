"""Sweeps that are killed, at any moment and in any way, go on with nothing lost and nothing repeated."""

import os
import signal
import subprocess
import sys
import time
from multiprocessing import forkserver
from pathlib import Path

import pandas as pd
import pytest
import yaml
from tiny import SIZES, TASKS, tiny

from src.runs import LogError, RunLog, load_runs
from src.training import workers
from src.training.loop import Observer, train
from src.training.workers import Interrupted, Job, WorkersError, execute, run_job

ROOT = Path(__file__).parents[2]
MEASURED = ["eval/loss", "train/loss", "eval/acc_induction", "1_0_rel_attn_bos_global", "history/eval/loss"]


@pytest.fixture
def sweep(tmp_path):
    """A sweep file of eight runs, each of about half a second."""
    values = SIZES | TASKS["induction"] | {"num_train": 2000, "num_epochs": 5}
    parameters = {name: {"value": value} for name, value in values.items()} | {"seed": {"min": 0, "max": 7}}
    path = tmp_path / "eight.yaml"
    path.write_text(yaml.safe_dump({"method": "grid", "parameters": parameters}))
    return path


def start(sweep, log):
    """train.py on a sweep, in a process group of its own."""
    command = [sys.executable, "train.py", "--workers=2", "--stack=1"]
    command += ["--sweep", str(sweep), "--log", str(log), "--figures", str(log.parent)]
    return subprocess.Popen(
        command, cwd=ROOT, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def wait_for(condition, process):
    while not condition():
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)  # opening the log takes time from those who train


def count(log, *states):
    return sum(state in states for state in RunLog(log).states().values())


def finished(log):
    """What finished runs hold, by seed."""
    runs = load_runs(log, history=True).query("state == 'finished'").set_index("seed").sort_index()
    return runs[["hash", "started", "process", *MEASURED]]


def test_killed_twice_then_interrupted_a_sweep_goes_on_even_when_started_twice(sweep, tmp_path):
    log = tmp_path / "runs.db"
    kept = []
    for kill in (signal.SIGKILL, signal.SIGKILL, signal.SIGINT):
        before = count(log, "finished")
        process = start(sweep, log)
        wait_for(lambda before=before: count(log, "finished") > before and count(log, "running"), process)
        if kill is signal.SIGKILL:
            process.kill()  # the parent alone: its workers must notice
            process.wait()
        else:
            process.send_signal(kill)
            _, errors = process.communicate()
            assert process.returncode == 130
            assert "the same command goes on: uv run python train.py --workers=2 --stack=1 --sweep" in errors
            assert count(log, "running") == 0
            assert count(log, "interrupted") >= 1
        kept.append(finished(log))

    processes = [start(sweep, log), start(sweep, log)]
    for process in processes:
        _, errors = process.communicate()
        assert process.returncode == 0, errors
        assert f"8 done, 0 failed, 0 diverged, {len(kept[-1])} resumed" in errors
    end = finished(log)
    assert (end["history/eval/loss"].map(len) == 6).all()
    assert end.index.tolist() == list(range(8))
    assert len(load_runs(log)) == 8
    for earlier in kept:  # what was finished has not been touched
        pd.testing.assert_frame_equal(end.loc[earlier.index], earlier)

    # and the results are those of runs that nobody disturbed, in another process, one at a time
    row = end.loc[3]
    values = yaml.safe_load(sweep.read_text())["parameters"]
    config = tiny(**{name: spec["value"] for name, spec in values.items() if "value" in spec}, seed=3)
    _, summary = train(config)
    for name in MEASURED[:-1]:
        assert row[name] == summary[name]


def drive(job, num_workers=1, act=lambda: None):
    for _ in run_job(job, num_workers, every=0.05):
        act()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_worker_is_replaced_and_its_run_done_again(how, tmp_path):
    configs = [tiny(seed=seed, num_train=1300, num_epochs=10) for seed in range(3)]
    job = Job([[config] for config in configs], tmp_path / "runs.db")
    log, killed = RunLog(job.log), []

    def kill_one():
        if killed:
            return
        at = load_runs(job.log)
        running = at[at["state"] == "running"] if len(at) else at
        if len(running) and log.epochs(0):
            killed.append(int(running["process"].iloc[0].rpartition(":")[2]))
            os.kill(killed[0], how)

    drive(job, 1, kill_one)
    assert killed
    runs = finished(job.log)
    assert runs.index.tolist() == [0, 1, 2]
    assert (runs["history/eval/loss"].map(len) == 11).all()
    assert not runs["process"].str.endswith(f":{killed[0]}").all()


def test_a_killed_stack_is_done_again_and_a_plain_sweep_beside_it_repeats_nothing(tmp_path):
    """Two jobs on one log at once: six runs as one stack, whose worker is killed in the middle, and the same alone."""
    configs = [tiny(seed=seed, lr=lr, num_train=1300, num_epochs=10) for lr in (1e-3, 1e-2) for seed in range(3)]
    stacked, plain = Job([configs], tmp_path / "runs.db"), Job([[c] for c in configs[::-1]], tmp_path / "runs.db")
    log, killed = RunLog(stacked.log), []
    first = run_job(stacked, 1, every=0.05)
    while not killed:
        next(first)
        if any(epoch >= 3 for epoch in log.epochs(0).values()):
            at = load_runs(stacked.log)
            assert at["state"].tolist() == ["running"] * 6
            killed.append(int(at["process"].iloc[0].rpartition(":")[2]))
            os.kill(killed[0], signal.SIGKILL)
    other = run_job(plain, 1, every=0.05)
    for _ in first:
        next(other, None)
    for _ in other:
        pass
    runs = load_runs(stacked.log, history=True)
    assert runs["state"].tolist() == ["finished"] * 6
    assert (runs["history/eval/loss"].map(len) == 11).all()
    assert not runs["process"].str.endswith(f":{killed[0]}").any()


def kill_all_at(deadly, job):
    """Drive the job with one worker, killing each process that is at the run `deadly`; those processes."""
    log, killed = RunLog(job.log), set()

    def kill():
        at_it = "SELECT process FROM runs WHERE state = 'running' AND hash = ?"
        for (process,) in log.db.execute(at_it, [deadly.hash]).fetchall():
            if process not in killed:
                killed.add(process)
                os.kill(int(process.rpartition(":")[2]), signal.SIGKILL)

    drive(job, 1, kill)
    return killed


def test_a_run_that_kills_its_workers_fails_and_the_others_go_on(tmp_path):
    deadly, fine = tiny(seed=1, num_train=4000, num_epochs=1000), tiny(seed=2)
    job = Job([[deadly], [fine]], tmp_path / "runs.db")
    log = RunLog(job.log)
    killed = kill_all_at(deadly, job)
    assert len(killed) == workers.CRASHES
    assert log.states() == {deadly.hash: "failed", fine.hash: "finished"}
    (error,) = log.db.execute("SELECT error FROM runs WHERE state = 'failed'").fetchone()
    assert error == "2 processes died over it; out of memory?"


def test_a_member_that_kills_its_workers_fails_alone(tmp_path):
    """After the death of a stack's worker its runs are trained one by one."""
    deadly, *fine = configs = [tiny(seed=seed, num_train=1300, num_epochs=10) for seed in range(3)]
    job = Job([configs], tmp_path / "runs.db")
    log = RunLog(job.log)
    killed = kill_all_at(deadly, job)
    assert len(killed) == 1 + workers.CRASHES
    assert log.states() == {deadly.hash: "failed"} | {config.hash: "finished" for config in fine}


@pytest.fixture
def capworkers(capfd):
    """capfd of workers too: their server begins anew, with the stderr that is captured."""
    forkserver._forkserver._stop()
    return capfd


def test_workers_that_cannot_begin_end_the_job(tmp_path, capworkers, monkeypatch):
    """Here: a trial of what fits on a GPU that is not there."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(WorkersError, match="4 workers died before they could train; their errors say why"):
        drive(Job([[tiny()]], tmp_path / "runs.db", fit=True), 2)
    assert "Error" in capworkers.readouterr().err
    assert not RunLog(tmp_path / "runs.db").states()


def test_a_worker_with_a_broken_gpu_is_replaced(tmp_path, monkeypatch):
    """An error that CUDA does not recover from fails the stack that it hit, not those after it."""

    def broken():
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    configs, log = [tiny(seed=seed) for seed in range(2)], RunLog(tmp_path / "runs.db")
    monkeypatch.setattr(workers, "execute", lambda *_: None)
    monkeypatch.setattr(workers.torch.cuda, "synchronize", broken)
    with pytest.raises(SystemExit) as ended:
        workers.work_at(configs, log, Job([configs], log.path, "cuda"))
    assert ended.value.code == workers.BROKEN_GPU
    monkeypatch.setattr(workers.torch.cuda, "synchronize", lambda: None)
    assert workers.work_at(configs, log, Job([configs], log.path, "cuda"))


def test_a_run_that_diverges_is_recorded_and_the_sweep_goes_on(tmp_path):
    bad, good = tiny(lr=1e30, use_layernorm=False), tiny()
    job = Job([[bad], [good]], tmp_path / "runs.db")
    drive(job)
    log = RunLog(job.log)
    assert log.states() == {bad.hash: "diverged", good.hash: "finished"}
    assert len(log.row(bad)["history"]) == 2
    assert log.row(bad)["summary"]["epoch"] == 1
    drive(Job([[bad], [good]], job.log), act=pytest.fail)  # neither is trained again


def test_results_do_not_depend_on_the_number_of_workers(tmp_path):
    configs = [tiny(task, seed=seed) for task in TASKS for seed in range(2)]
    tables = []
    for num_workers in (1, 2):
        job = Job([[config] for config in configs], tmp_path / f"{num_workers}.db")
        drive(job, num_workers)
        table = load_runs(job.log, history=True).set_index("hash").sort_index()
        tables.append(table.drop(columns=["started", "seconds", "process"]))
    pd.testing.assert_frame_equal(*tables, check_like=True)


def test_a_run_that_has_ended_stays_so_though_its_process_is_stopped_at_that_moment(tmp_path, monkeypatch):
    """The others of its stack are interrupted."""
    end, configs, log = RunLog.end, [tiny(seed=seed) for seed in range(2)], RunLog(tmp_path / "runs.db")

    def stopped(self, config, state, *rest):
        end(self, config, state, *rest)
        if state == "finished":
            raise Interrupted

    monkeypatch.setattr(RunLog, "end", stopped)
    with pytest.raises(Interrupted):
        execute(configs, log, "cpu")
    assert log.states() == {configs[0].hash: "finished", configs[1].hash: "interrupted"}
    assert log.row(configs[0])["summary"]["eval/loss"] > 0


class Broken(Observer):
    def on_epoch(self, epoch, results):
        if epoch == 1:
            raise RuntimeError("something broke")


def test_a_run_that_fails_says_why_and_is_tried_again_next_time(tmp_path):
    config, log = tiny(), RunLog(tmp_path / "runs.db")
    began = log.attempts()
    assert execute([config], log, "cpu", [[Broken()]]) == ["failed"]
    assert load_runs(log.path)["error"][0].strip().endswith("RuntimeError: something broke")
    assert log.states(settled_since=began)
    assert not log.states(settled_since=log.attempts())
    assert execute([config], log, "cpu") == ["finished"]
    assert load_runs(log.path)["error"].tolist() == [None]


def test_a_log_that_workers_cannot_use_ends_the_job(tmp_path, capworkers):
    """Here: from a moment on no transaction is allowed to grow the file, as on a full disk."""
    job = Job([[tiny(seed=seed, num_epochs=3)] for seed in range(400)], tmp_path / "runs.db")
    log = RunLog(job.log)
    with log.db:
        log.db.execute("CREATE TRIGGER full BEFORE INSERT ON history BEGIN SELECT RAISE(FAIL, 'disk is full'); END")
    with pytest.raises(LogError, match="a worker could not use the run log .*; what it holds is kept"):
        drive(job)
    assert "error: cannot use the run log" in capworkers.readouterr().err
