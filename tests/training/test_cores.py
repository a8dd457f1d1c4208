"""How many workers start by themselves."""

import os

import pytest

from src.training import cores


@pytest.fixture(autouse=True)
def _a_large_machine(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    monkeypatch.delenv("SLURM_CPUS_PER_TASK", raising=False)


def system(folder, groups, **files):
    """A system whose /proc names these control groups, with these files."""
    (folder / "proc/self").mkdir(parents=True)
    (folder / "proc/self/cgroup").write_text(groups)
    for name, text in files.items():
        path = folder / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        ("0::/\n", {"cpu.max": "200000 100000\n"}, 2),  # version 2, in a container
        ("0::/job/step\n", {"job/cpu.max": "300000 100000\n", "job/step/cpu.max": "max 100000\n"}, 3),
        ("0::/job/step\n", {"job/cpu.max": "800000 100000\n", "job/step/cpu.max": "250000 100000\n"}, 3),  # 2.5
        ("0::/\n", {"cpu.max": "5000 100000\n"}, 1),
        ("0::/\n", {"cpu.max": "max 100000\n"}, 64),
        (
            "5:memory:/a\n4:cpu,cpuacct:/a\n0::/\n",  # version 1
            {"cpu/a/cpu.cfs_quota_us": "400000\n", "cpu/a/cpu.cfs_period_us": "100000\n"},
            4,
        ),
        ("4:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 64),
        ("0::/elsewhere\n", {}, 64),  # a namespace hides the group
    ],
)
def test_a_quota_is_kept(tmp_path, groups, files, expected):
    assert cores.usable_cores(system(tmp_path, groups, **files)) == expected


def test_the_least_of_all_counts(tmp_path, monkeypatch):
    root = system(tmp_path, "0::/\n", **{"cpu.max": "800000 100000"})
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "2")
    assert cores.usable_cores(root) == 2
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "")
    assert cores.usable_cores(root) == 8
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3})
    assert cores.usable_cores(root) == 1


def test_without_affinity_or_groups_there_are_the_cores(tmp_path, monkeypatch):
    """macOS has neither."""
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 10)
    assert cores.usable_cores(tmp_path) == 10
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert cores.usable_cores(tmp_path) == 1
