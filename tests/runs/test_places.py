"""Where a log may lie: local disks, network file systems, folders without locks."""

import errno
import os

import pytest
from rows import A, finish

from src.runs import LogError, RunLog, load_runs, places

MOUNTS = r"""22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
30 22 0:40 / /home rw,relatime shared:9 - nfs4 server:/home rw,vers=4.2
31 22 0:41 / /home/me/scratch\040disk rw - xfs /dev/sdb1 rw
32 22 0:42 / /mnt rw - ext4 /dev/sdc1 rw
33 32 0:43 / /mnt rw - fuse.sshfs me@there: rw
"""


@pytest.mark.parametrize(
    ("folder", "kind"),
    [
        ("/tmp", "ext4"),
        ("/home/me", "nfs4"),
        ("/homes", "ext4"),
        ("/home/me/scratch disk/logs", "xfs"),
        ("/mnt/x", "fuse.sshfs"),
    ],
)
def test_the_file_system_of_a_folder(folder, kind, tmp_path):
    (tmp_path / "mounts").write_text(MOUNTS)
    assert places.file_system(places.Path(folder), tmp_path / "mounts") == kind
    assert places.file_system(places.Path(folder), tmp_path / "none") is None


def test_a_trial_finds_that_locks_and_memory_work_here_and_leaves_nothing(tmp_path):
    places.trial.cache_clear()
    assert places.trial(tmp_path) == (True, True)
    assert not list(tmp_path.iterdir())


def journal(log):
    return log.db.execute("PRAGMA journal_mode").fetchone()[0]


def test_on_a_network_file_system_a_log_needs_no_shared_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(places, "file_system", lambda folder: "nfs4")
    log, other = RunLog(tmp_path / "runs.db"), RunLog(tmp_path / "runs.db")
    assert journal(log) == journal(other) == "delete"
    finish(log, A)
    assert other.states() == {A.hash: "finished"}
    assert load_runs(log.path)["state"].tolist() == ["finished"]
    assert os.listdir(tmp_path) == ["runs.db"]


def test_elsewhere_a_trial_decides(tmp_path, monkeypatch):
    monkeypatch.setattr(places, "file_system", lambda folder: None)
    assert journal(RunLog(tmp_path / "runs.db")) == "wal"
    monkeypatch.setattr(places, "trial", lambda folder: (True, False))
    assert journal(RunLog(tmp_path / "no memory.db")) == "delete"


def test_where_locks_do_not_work_a_log_is_refused_with_the_way_out(tmp_path, monkeypatch):
    def no_locks(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    places.trial.cache_clear()
    monkeypatch.setattr(places, "file_system", lambda folder: "lustre")
    monkeypatch.setattr(places.fcntl, "lockf", no_locks)
    with pytest.raises(LogError, match=r"locks do not work in .*of type lustre.*local disk with --log"):
        RunLog(tmp_path / "runs.db")
    assert not list(tmp_path.iterdir())
    places.trial.cache_clear()


def test_a_log_of_a_local_disk_is_read_and_used_on_a_network_file_system(tmp_path, monkeypatch):
    """Its -wal is gone into it when the last to use it leaves; here it was killed."""
    log = RunLog(tmp_path / "runs.db")
    finish(log, A)
    monkeypatch.setattr(places, "file_system", lambda folder: "nfs4")
    with pytest.raises(LogError, match="cannot open the run log"):  # while those are at work who use it as a local one
        monkeypatch.setattr("src.runs.log.PATIENCE", 0.1) or RunLog(log.path)
    del log
    assert RunLog(tmp_path / "runs.db").states() == {A.hash: "finished"}
