"""Where a run comes from: the commit of the code and the machine."""

import subprocess
from functools import cache
from pathlib import Path

import torch

from src.model import cpu

ROOT = Path(__file__).parents[2]


@cache
def git_commit() -> str | None:
    """The commit of this checkout, with a + if tracked files differ from it."""
    git = ["git", "-C", str(ROOT), "describe", "--always", "--dirty=+", "--abbrev=12", "--exclude=*"]
    try:
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def device_name(device: str) -> str:
    """The model of the GPU, or of the CPU where the system tells it."""
    return torch.cuda.get_device_name() if device == "cuda" else cpu.model_name()
