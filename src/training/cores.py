"""How many cores this process may use."""

import math
import os
from collections.abc import Iterator
from pathlib import Path


def usable_cores(system: Path = Path("/")) -> int:
    """The least of what the system has, what this process is bound to, what its containers' quotas give it (a part
    of a core counts as one) and what Slurm gives a task. `system` is where /proc and /sys are."""
    allowed = [_bound_to(), *(math.ceil(quota) for quota in _quotas(system))]
    slurm = os.environ.get("SLURM_CPUS_PER_TASK", "")
    if slurm.isdecimal() and int(slurm):
        allowed.append(int(slurm))
    return max(1, min(allowed))


def _bound_to() -> int:
    if hasattr(os, "sched_getaffinity"):  # not on macOS, which binds no process
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _quotas(system: Path) -> Iterator[float]:
    """Cores that this process's control groups, and those around them, may use; none where the system has no such
    groups. Version 2 has one tree of groups, version 1 one for each kind of resource."""
    mount = system / "sys/fs/cgroup"
    for line in _read(system / "proc/self/cgroup").splitlines():
        _, kinds, group = line.split(":", 2)
        if not kinds or "cpu" in kinds.split(","):
            parts = Path(group).parts[1:]
            tree = mount / "cpu" if kinds else mount
            for depth in range(len(parts) + 1):
                yield from _quota(tree.joinpath(*parts[:depth]))


def _quota(folder: Path) -> Iterator[float]:
    """The quota that a control group has of its own."""
    quota, _, period = _read(folder / "cpu.max").partition(" ")  # version 2
    if not quota:
        quota, period = _read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")  # version 1
    if quota.strip().isdecimal() and period.strip().isdecimal() and int(period):  # not "max" or -1: no limit
        yield int(quota) / int(period)


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
