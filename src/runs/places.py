"""Where a log may lie: what a folder's file system can do, and whether a file is still the one that was opened."""

import fcntl
import mmap
import os
import re
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

from src.errors import LogError

# File systems of one machine, whose locks and shared memory are the kernel's own.
LOCAL = frozenset(("ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "f2fs", "jfs", "bcachefs", "tmpfs", "overlay"))
# File systems that several machines may have mounted: shared memory ends at each of them.
NETWORK = frozenset(
    ("nfs", "nfs4", "cifs", "smb3", "smbfs", "lustre", "gpfs", "beegfs", "ceph", "afs", "pvfs2", "orangefs", "ocfs2")
    + ("gfs2", "panfs", "wekafs", "glusterfs", "fuse.glusterfs", "fuse.sshfs", "fuse.ceph", "fuse.s3fs", "fuse.rclone")
)


def journal_mode(folder: Path) -> str:
    """How SQLite may write in a folder: WAL, or DELETE where processes share files but no memory.

    LogError where locks do not keep processes apart. On a file system that is none of LOCAL, a trial with a second
    process decides.
    """
    kind = file_system(folder)
    if kind in LOCAL:
        return "WAL"
    locks, memory = trial(folder)
    if not locks:
        raise LogError(
            f"locks do not work in {folder}{f' (a file system of type {kind})' if kind else ''}, so that two processes "
            "could train one run; name a log on a local disk with --log, and `python -m src.runs import` or export it "
            "at the end"
        )
    return "WAL" if memory and kind not in NETWORK else "DELETE"


def file_system(folder: Path, mounts: Path = Path("/proc/self/mountinfo")) -> str | None:
    """The type of the file system that the folder lies in, where the system tells it."""
    try:
        lines = mounts.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return None
    found, longest = None, -1
    for line in lines:
        mount, _, source = line.partition(" - ")
        point = re.sub(r"\\(\d{3})", lambda octal: chr(int(octal[1], 8)), mount.split()[4])  # a space is \040
        if folder.is_relative_to(point) and len(point) >= longest:  # the last mount of a point hides the others
            found, longest = source.split()[0], len(point)
    return found


# The second process of a trial: it says whether the lock of the first kept it away, and whether it saw its memory.
OTHER = """
import fcntl, mmap, sys
refused = seen = False
with open(sys.argv[1], "r+b") as file:
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 0)
    except BlockingIOError:
        refused = True
    memory = mmap.mmap(file.fileno(), 2)
    seen = memory[0] == 7
    memory[1] = 9
    print(refused, seen)
"""


@cache
def trial(folder: Path) -> tuple[bool, bool]:
    """Whether locks keep two processes apart in the folder, and whether they share memory there."""
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".trial-") as file:
        file.write(bytes(2))
        file.flush()
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 0)
            memory = mmap.mmap(file.fileno(), 2)
        except OSError:  # neither is worth anything here without the other
            return False, False
        memory[0] = 7
        said = subprocess.run([sys.executable, "-ISc", OTHER, file.name], capture_output=True, text=True).stdout
        return said.startswith("True"), said.endswith("True\n") and memory[1] == 9


def identity(path: Path) -> tuple[int, int] | None:
    """Device and inode of the file at a path; None if there is none."""
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino
