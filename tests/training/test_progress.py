"""How often progress bars move."""

import io
import sys

import pytest
from ipykernel.iostream import OutStream

from src.training.progress import watched


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(
    ("stderr", "expected"),
    [(Terminal(), True), (OutStream.__new__(OutStream), True), (io.StringIO(), False), (None, False)],
    ids=["terminal", "notebook", "file", "closed"],
)
def test_bars_move_often_where_somebody_looks(stderr, expected, monkeypatch):
    if isinstance(stderr, OutStream):
        monkeypatch.setattr(OutStream, "isatty", lambda self: False)
        monkeypatch.setattr(OutStream, "__del__", lambda self: None, raising=False)
    monkeypatch.setattr(sys, "stderr", stderr)
    assert watched() == expected
