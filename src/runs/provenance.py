"""Where a run comes from: the commit of the code and the machine."""

import multiprocessing
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import torch

from src.model import cpu

ROOT = Path(__file__).parents[2]
CODE = ["src/*.py", "train.py", "pretrained.py"]  # what decides a run's result, as git's patterns
ELSEWHERE = {"GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"}  # set inside hooks, they name another repository


@cache
def git_commit() -> str | None:
    """The commit of this checkout, with a + if its code differs from it; None, and a line about it, if unknown.

    Pictures, results, notebooks and tests may differ as they like. A copy that lies inside another repository has
    no commit of its own.
    """
    try:
        if not ROOT.samefile(_git("rev-parse", "--show-toplevel")):
            raise OSError("this folder is no checkout of its own, but lies inside another repository")
        commit = _git("rev-parse", "--short=12", "HEAD")
        return commit + "+" * bool(_git("status", "--porcelain", "--untracked-files=all", "--", *CODE))
    except OSError as error:
        if multiprocessing.parent_process() is None:  # once, not by every worker
            print(f"note: runs are logged without the commit of their code ({error})", file=sys.stderr)
        return None


def _git(*arguments: str) -> str:
    """What git says about this folder; OSError with its first sentence if it refuses."""
    command = ["git", "--no-optional-locks", "-C", str(ROOT), *arguments]
    here = {name: value for name, value in os.environ.items() if name not in ELSEWHERE}
    done = subprocess.run(command, env=here, capture_output=True, text=True, errors="replace")
    if done.returncode:
        raise OSError(done.stderr.strip().partition("\n")[0] or f"git ended with status {done.returncode}")
    return done.stdout.strip()


def device_name(device: str) -> str:
    """The model of the GPU, or of the CPU where the system tells it."""
    return torch.cuda.get_device_name() if device == "cuda" else cpu.model_name()
