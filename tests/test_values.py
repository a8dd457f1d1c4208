"""What comes from outside becomes what its field is, or one sentence."""

import datetime
import math
from typing import Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from src.errors import ConfigError
from src.values import as_type, read_list, read_yaml, shown

WHOLE, NUMBER, SWITCH, NAME = int, float, bool, str
CHOICE = Literal["concat", "add", "no"] | None


@pytest.mark.parametrize(
    ("value", "kind", "result"),
    [
        (4.0, WHOLE, 4), ("4", WHOLE, 4), ("4.0", WHOLE, 4), ("1e3", WHOLE, 1000), (np.int64(3), WHOLE, 3),
        ("9007199254740993", WHOLE, 2**53 + 1), ("9007199254740993.0", WHOLE, 2**53 + 1), (" 7 ", WHOLE, 7),
        (1, NUMBER, 1.0), ("1e-2", NUMBER, 0.01), ("1", NUMBER, 1.0), (np.float32(0.5), NUMBER, 0.5),
        (True, SWITCH, True), ("True", SWITCH, True), ("false", SWITCH, False), ("off", SWITCH, False),
        ("no", CHOICE, "no"), ("None", CHOICE, None), ("null", int | None, None), (None, bool | None, None),
        ("None", NAME, "None"), ("here.py:mine", NAME, "here.py:mine"), ("010", WHOLE, 10),
    ],
)  # fmt: skip
def test_what_is_certain_is_taken(value, kind, result):
    taken = as_type("x", value, kind)
    assert taken == result
    assert type(taken) is type(result)


@pytest.mark.parametrize(
    ("value", "kind", "sentence"),
    [
        (math.inf, WHOLE, "x=inf must be a whole number below 2**63"),
        (math.nan, WHOLE, "x=nan must be a whole number"),
        (10**400, WHOLE, "00000 must be a whole number below 2**63"),
        (10**5000, WHOLE, "x=a number of thousands of digits must be a whole number below 2**63"),
        ("1e400", WHOLE, "x=1e400 must be a whole number below 2**63"),
        ("1e999999999", WHOLE, "x=1e999999999 must be a whole number below 2**63"),
        ("1e-999999999", WHOLE, "x=1e-999999999 must be a whole number"),
        ("nan", WHOLE, "x=nan must be a whole number"),
        (0.5, WHOLE, "x=0.5 must be a whole number"),
        (True, WHOLE, "x=True must be a whole number"),
        ("two", WHOLE, "x=two must be a whole number"),
        ("", WHOLE, "x='' must be a whole number"),
        ("", NUMBER, "x='' must be a number"),
        ("", NAME, "x='' must be a name"),
        (3, NAME, "x=3 must be a name"),
        (datetime.date(2026, 1, 2), NUMBER, "x=2026-01-02 must be a number"),
        ({1, 2}, NUMBER, "x={1, 2} must be a number"),
        (1 + 2j, NUMBER, "x=(1+2j) must be a number"),
        ([1], NUMBER, "x=[1] must be a number"),
        (1, SWITCH, "x=1 must be True or False"),
        ("maybe", SWITCH, "x=maybe must be True or False"),
        ("None", SWITCH, "x=None must be True or False"),
        (False, CHOICE, 'x=False is not allowed; choose one of concat, add, no (YAML reads no as False: write "no")'),
        ([1], CHOICE, "x=[1] is not allowed"),
        ("a\nb", NUMBER, "x='a\\nb' must be a number"),
    ],
    ids=shown,  # Python's str fails for one of them
)
def test_what_is_not_is_refused_in_one_short_line(value, kind, sentence):
    with pytest.raises(ConfigError) as refusal:
        as_type("x", value, kind)
    text = str(refusal.value)
    assert sentence in text
    assert "\n" not in text
    assert len(text) < 200


def test_numbers_without_end_are_infinite():
    """And it is for the field to refuse them, as any number that is not finite."""
    assert [as_type("x", value, float) for value in (10**400, -(10**400), "1e400")] == [math.inf, -math.inf, math.inf]


@pytest.mark.parametrize("kind", [WHOLE, NUMBER, SWITCH, NAME, CHOICE])
@given(st.one_of(st.integers(), st.floats(), st.text(), st.none(), st.booleans(), st.lists(st.integers()), st.binary()))
def test_nothing_gets_past_the_door(kind, value):
    try:
        taken = as_type("x", value, kind)
    except ConfigError as error:
        sentence = str(error)
    else:
        sentence = ""
        assert taken is None or type(taken) in (kind, str)
    assert sentence.isprintable()


def test_a_value_that_refers_to_itself_can_be_shown():
    loop = []
    loop.append(loop)
    assert len(shown(loop)) < 100


FILES = {  # what PyYAML dies of, each in its own way
    "deep": "a: " + "[" * 1000 + "]" * 1000,
    "whole": 'a: !!int "abc"',
    "word": 'a: !!bool "abc"',
    "date": "a: 2026-13-45",
    "time": 'a: !!timestamp "abc"',
    "digits": "a: " + "1" * 5000,
    "object": "a: !!python/object:os.system {}",
    "open": "a: [",
    "list": "- a",
    "empty": "",
    "number": "1: 2",
    "twice": "a: 1\nb: 2\na: 3",
    "twice below": "a: {b: 1, b: 1}",
    "key": "? [1, 2]\n: 3",
}


@pytest.mark.parametrize("name", FILES)
def test_yaml_files_that_are_refused(tmp_path, name):
    path = tmp_path / "file.yaml"
    path.write_text(FILES[name])
    with pytest.raises(ConfigError) as refusal:
        read_yaml(path, "the file")
    assert "file.yaml is not valid YAML" in str(refusal.value) or "is empty or no mapping" in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_key_twice_is_named(tmp_path):
    (tmp_path / "file.yaml").write_text(FILES["twice"])
    with pytest.raises(ConfigError, match="a is there 2 times"):
        read_yaml(tmp_path / "file.yaml", "the file")
    (tmp_path / "file.yaml").write_text("base: &base {a: 1, b: 2}\nmore: {<<: *base, a: 3}")  # an override, as meant
    assert read_yaml(tmp_path / "file.yaml", "the file")["more"] == {"a": 3, "b": 2}


def test_files_that_cannot_be_read(tmp_path):
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    for path in (tmp_path, tmp_path / "missing.yaml", tmp_path / "binary", "a\0b"):
        with pytest.raises(ConfigError, match="cannot read the file"):
            read_yaml(path, "the file")


def test_lists_keep_their_items_as_they_are_written():
    assert read_list("lr", "[1e-3, 010, no]") == ["1e-3", "010", "no"]
    for text in ("[1, 2", "[" * 1000, "[1] 2"):
        with pytest.raises(ConfigError, match="lr=.* is not valid YAML"):
            read_list("lr", text)
