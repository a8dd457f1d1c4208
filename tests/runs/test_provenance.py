"""The commit that a run is logged with."""

import os
import subprocess

import pytest

from src.runs import provenance


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A committed checkout with code, a picture and a test, in the place of ours."""
    root = tmp_path / "checkout"
    files = {
        "src/model/a.py": "1",
        "train.py": "2",
        "results/runs.parquet": "3",
        "fig.png": "4",
        "tests/test_a.py": "5",
    }
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    monkeypatch.setattr(provenance, "ROOT", root)
    make_repository(root)
    return root


def make_repository(folder):
    settings = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
    for arguments in (["init", "-q"], ["add", "."], [*settings, "commit", "-qm", "all", "--no-verify"]):
        subprocess.run(["git", *arguments], cwd=folder, check=True)


@pytest.fixture(autouse=True)
def _asked_anew():
    provenance.git_commit.cache_clear()
    yield
    provenance.git_commit.cache_clear()


def commit():
    return provenance.git_commit.__wrapped__()  # past the cache


def test_only_code_decides_about_the_plus(checkout):
    clean = commit()
    assert len(clean) == 12
    for name in ("results/runs.parquet", "fig.png", "tests/test_a.py", "visualizations/new.ipynb"):
        (checkout / name).parent.mkdir(exist_ok=True)
        (checkout / name).write_text("other")
        assert commit() == clean
    for name in ("src/model/a.py", "train.py", "src/new/b.py"):
        text = (checkout / name).read_text() if (checkout / name).exists() else None
        (checkout / name).parent.mkdir(exist_ok=True)
        (checkout / name).write_text("other")
        assert commit() == clean + "+"
        (checkout / name).unlink() if text is None else (checkout / name).write_text(text)
        assert commit() == clean


def test_a_copy_inside_another_repository_has_no_commit(checkout, monkeypatch, capsys):
    inside = checkout / "vendor" / "download"
    (inside / "src").mkdir(parents=True)
    monkeypatch.setattr(provenance, "ROOT", inside)
    assert commit() is None
    assert "lies inside another repository" in capsys.readouterr().err


def test_a_hook_of_another_repository_changes_nothing(checkout, tmp_path, monkeypatch):
    clean, other = commit(), tmp_path / "other"
    other.mkdir()
    (other / "text").write_text("")
    make_repository(other)
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))
    assert commit() == clean


@pytest.mark.parametrize("refusal", ["echo 'fatal: detected dubious ownership' >&2; exit 128", None])
def test_git_that_refuses_or_is_missing_is_said_once(refusal, tmp_path, monkeypatch, capsys):
    if refusal:
        (tmp_path / "git").write_text(f"#!/bin/sh\n{refusal}\n")
        (tmp_path / "git").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}" + (os.pathsep + os.environ["PATH"] if refusal else ""))
    assert provenance.git_commit() is None
    assert provenance.git_commit() is None
    note = capsys.readouterr().err
    assert note.count("\n") == 1
    assert note.startswith("note: runs are logged without the commit of their code (")
    assert ("dubious ownership" in note) == bool(refusal)
