"""Machines that are refused, and installations that are."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from src import machine

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("system", "processor", "sentence"),
    [
        ("win32", "AMD64", "use WSL"),
        ("darwin", "x86_64", "with Apple silicon use Python for arm64"),
        ("darwin", "arm64", None),
        ("linux", "x86_64", None),
        ("linux", "aarch64", None),
    ],
)
def test_what_is_supported(system, processor, sentence, monkeypatch):
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(machine.platform, "machine", lambda: processor)
    if sentence is None:
        machine.check()
    else:
        with pytest.raises(SystemExit, match=f"^error: .*{sentence}"):
            machine.check()


def test_a_copy_in_site_packages_says_how_to_install(tmp_path):
    """As `pip install .` makes it; nothing is imported but what says so."""
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__"))
    done = subprocess.run([sys.executable, "-m", "src.runs"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert f"the package was copied to {tmp_path}" in done.stderr
    assert "pip install -e ." in done.stderr
