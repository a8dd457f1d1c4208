"""requirements.txt, for users of pip, is what uv installs."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILE = ROOT / "requirements.txt"


def pinned(text):
    """Of each package: its versions and the hashes of their files. Markers, which uv may word anew, are left out."""
    entries = re.findall(r"^([\w.-]+)==(\S+)(.*?)(?=^\S|\Z)", text, re.MULTILINE | re.DOTALL)
    return {(name, version): set(re.findall(r"--hash=(\S+)", rest)) for name, version, rest in entries}


def test_every_package_has_hashes_and_none_an_address():
    text = FILE.read_text()
    packages = pinned(text)
    assert len(packages) > 100
    assert all(packages.values())
    lines = [line for line in text.splitlines() if not line.startswith(("#", " "))]
    assert len(lines) == len(packages)  # no option, no path, no link
    assert not re.search(r"://|@|index|find-links|trusted", text.replace("--no-emit-index-url", ""))


@pytest.mark.skipif(not shutil.which("uv"), reason="there is no uv")
@pytest.mark.skipif("UV_RESOLUTION" in os.environ, reason="another resolution is tested")
def test_it_is_what_uv_resolves():
    """By the command in its second line, from uv's lock file and cache alone."""
    command = FILE.read_text().splitlines()[1].removeprefix("#").split()
    done = subprocess.run([*command, "--offline"], cwd=ROOT, capture_output=True, text=True)
    if done.returncode and "network was disabled" in done.stderr:
        pytest.skip("uv has not resolved here yet, and may not ask a registry")
    assert done.returncode == 0, done.stderr
    assert pinned(done.stdout) == pinned(FILE.read_text())
