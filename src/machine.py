"""Where this project runs: checked when it is first imported, before anything that is slow or missing elsewhere."""

import platform
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def check() -> None:
    """SystemExit with one sentence on a system that is not supported, and for a copy that is no checkout."""
    if problem := unsupported(sys.platform, platform.machine()) or misplaced(ROOT):
        raise SystemExit(f"error: {problem}")


def unsupported(system: str, processor: str) -> str | None:
    """Why this project cannot run on a system and processor, as sys.platform and platform.machine() name them."""
    if system == "win32":
        return (
            "Windows lacks the locks that keep a run log whole; use WSL, the Linux in Windows (`wsl --install`), or a "
            "Mac with Apple silicon, or Linux"
        )
    if (system, processor) == ("darwin", "x86_64"):
        return "there is no new torch for Intel's Python on a Mac; with Apple silicon use Python for arm64, else Linux"
    return None


def misplaced(root: Path) -> str | None:
    """Why the package cannot be used from this folder: its tables, logs, sweep files and pictures lie beside it."""
    if (root / "train.py").is_file():
        return None
    return (
        f"the package was copied to {root}, without the tables, sweep files and notebooks that belong to it; in the "
        "checkout: pip uninstall softmax-polarization, then pip install -e ."
    )
