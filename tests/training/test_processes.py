"""Worker processes: where they come from, and that they end with those who need them."""

import json
import os
import signal
import sys
from pathlib import Path

import pytest
from tiny import tiny

import src
from src.runs import RunLog, load_runs
from src.training import processes
from src.training.loop import train
from src.training.workers import Job, run_job

linux = pytest.mark.skipif(sys.platform != "linux", reason="forked on Linux alone")


def look_around(path):
    """What a worker finds where it starts."""
    server = Path(f"/proc/{os.getppid()}/status")
    threads = int(server.read_text().partition("Threads:")[2].split()[0]) if server.exists() else None
    found = {"threads": threads, "variable": os.environ.get("OF_THE_TEST"), "path": os.environ.get("PYTHONPATH")}
    found |= {"folder": os.getcwd(), "src": src.__file__, "ends": signal.getsignal(signal.SIGTERM) is signal.SIG_DFL}
    Path(path).write_text(json.dumps(found))


@pytest.mark.parametrize("forked", [pytest.param(True, marks=linux), False])
def test_a_worker_starts_where_its_parent_is_now(forked, tmp_path, monkeypatch):
    """The server began with another environment, in another folder; it has no thread that a fork would lose."""
    monkeypatch.setattr(processes, "forks", lambda device: forked)
    monkeypatch.setenv("OF_THE_TEST", "today")
    monkeypatch.chdir(tmp_path)
    worker = processes.start(look_around, "found.json", device="cpu")
    worker.join()
    assert worker.exitcode == 0
    found = json.loads(Path("found.json").read_text())
    assert found["variable"] == "today"
    assert found["path"] == os.environ.get("PYTHONPATH")
    assert found["folder"] == str(tmp_path)
    assert found["src"] == src.__file__
    assert found["ends"]
    assert not forked or found["threads"] == 1


def train_and_tell(path):
    """What a worker has imported that training needs not."""
    train(tiny())
    found = [name for name in ("torch._dynamo", "scipy.stats", "matplotlib") if name in sys.modules]
    Path(path).write_text(json.dumps(found))


def test_training_imports_no_compiler(tmp_path):
    """Which would take a second of each process's time."""
    worker = processes.start(train_and_tell, str(tmp_path / "found.json"), device="cpu")
    worker.join()
    assert json.loads((tmp_path / "found.json").read_text()) == []


def test_on_a_gpu_nothing_is_forked():
    assert not processes.forks("cuda")
    assert processes.forks("cpu") == (sys.platform == "linux")


@linux
def test_a_killed_server_costs_no_run(tmp_path):
    """Its workers, whose end nobody would see any more, die with it; a new one forks others."""
    configs = [tiny(seed=seed, num_train=2000, num_epochs=10) for seed in range(3)]
    job, killed = Job([[config] for config in configs], tmp_path / "runs.db"), []
    for _ in run_job(job, 2, every=0.05):
        if killed:
            continue
        at = load_runs(job.log)
        if len(at) and (at["state"] == "running").any():
            worker = int(at["process"].iloc[0].rpartition(":")[2])
            killed.append(int(Path(f"/proc/{worker}/stat").read_text().split()[3]))
            os.kill(killed[0], signal.SIGKILL)
    runs = load_runs(job.log, history=True)
    assert killed
    assert RunLog(job.log).states() == {config.hash: "finished" for config in configs}
    assert (runs["history/eval/loss"].map(len) == 11).all()
