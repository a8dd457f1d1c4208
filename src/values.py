"""The door: a value from a command line, a YAML file or a table becomes what its field is, once; else ConfigError."""

import functools
import math
import numbers
import reprlib
from collections import Counter
from decimal import Decimal, InvalidOperation
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

import yaml

from src.errors import ConfigError, require

WORDS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}  # YAML 1.1
NOTHING = ("None", "null")  # Python's word, which W&B's agent passes, and YAML's
LARGEST = 2**63  # whole numbers are smaller, so that every table holds them


def as_type(name: str, value: Any, kind: Any) -> Any:
    """`value` as a bool, int, float, str, one of a Literal, or None where `kind` allows it.

    A text that is a number, or a word for True, False or None, is one where the kind asks for one. Raises ConfigError
    for what is none of the kind without loss.
    """
    kind, allowed, may_be_none = kind_of(kind)
    if may_be_none and (value is None or (isinstance(value, str) and value in NOTHING)):
        return None
    if allowed:
        return one_of(name, value, allowed)
    read, article = KINDS[kind]
    result = read(value)
    if result is None:
        size = " below 2**63" if kind is int and abs(as_float(value) or 0) >= LARGEST else ""
        raise ConfigError(f"{name}={shown(value)} must be {article}{size}")
    return result


@functools.cache
def kind_of(annotation: Any) -> tuple[type, tuple[str, ...], bool]:
    """An annotation's type, the values that a Literal allows, and whether None is among it."""
    may_be_none = get_origin(annotation) in (Union, UnionType)
    if may_be_none:
        (annotation,) = (kind for kind in get_args(annotation) if kind is not NoneType)
    allowed = get_args(annotation) if get_origin(annotation) is Literal else ()
    return str if allowed else annotation, allowed, may_be_none


def one_of(name: str, value: Any, allowed: tuple[str, ...]) -> str:
    if isinstance(value, str) and value in allowed:
        return value
    hint = ' (YAML reads no as False: write "no")' if value is False and "no" in allowed else ""
    raise ConfigError(f"{name}={shown(value)} is not allowed; choose one of {', '.join(allowed)}{hint}")


def as_bool(value: Any) -> bool | None:
    return WORDS.get(value.lower()) if isinstance(value, str) else value if isinstance(value, bool) else None


def as_name(value: Any) -> str | None:
    return value if isinstance(value, str) and value.strip() else None


def as_int(value: Any) -> int | None:
    """`value`, or the number that it spells, if it is whole: 4, 4.0, "4", "1e3"; None for anything else."""
    if isinstance(value, str):
        try:
            value = Decimal(value)  # exact, where a float would round
        except InvalidOperation:
            return None
        if not value.is_finite():
            return None
    elif isinstance(value, bool) or not isinstance(value, numbers.Real):
        return None
    # the size first: infinities and NaN have no whole part, and that of a huge power of ten takes for ever
    return int(value) if -LARGEST < value < LARGEST and value == int(value) else None


def as_float(value: Any) -> float | None:
    """`value`, or the number that it spells; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, (str, numbers.Real)):
        return None
    try:
        return float(value)
    except ValueError:
        return None
    except OverflowError:  # a whole number of hundreds of digits
        return math.inf if value > 0 else -math.inf


KINDS = {
    bool: (as_bool, "True or False"),
    int: (as_int, "a whole number"),
    float: (as_float, "a number"),
    str: (as_name, "a name"),
}

_short = reprlib.Repr()
_short.maxstring = _short.maxother = _short.maxlong = 60


def shown(value: Any) -> str:
    """The value in a sentence: short, and in one line."""
    if isinstance(value, str):
        plain = value == value.strip() and value.isprintable() and 0 < len(value) <= 60
        return value if plain else _short.repr(value)
    if isinstance(value, list) and value and all(isinstance(item, str) for item in value):
        return f"[{', '.join(map(shown, value[:6]))}{', ...' if len(value) > 6 else ''}]"
    try:
        text = _short.repr(value) if isinstance(value, (list, tuple, dict, set, int)) else str(value)
    except ValueError:  # Python prints no whole numbers of thousands of digits
        return "a number of thousands of digits"
    return text if text.isprintable() and len(text) <= 200 else _short.repr(text)


class _Loader(yaml.SafeLoader):
    """Refuses what YAML leaves open: which of two values a key has that is written twice."""

    def construct_mapping(self, node, deep=False):
        # before the parent's, which puts in what `<<` refers to: that may be overridden
        counts = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
        for key, count in counts.items():
            if count > 1:
                raise yaml.MarkedYAMLError(problem=f"{key} is there {count} times", problem_mark=node.start_mark)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path | str, what: str) -> dict[str, Any]:
    """The mapping that a YAML file holds; ConfigError, which calls it `what`, if there is none."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise ConfigError(f"cannot read {what} {shown(str(path))}: {error}") from error
    try:
        content = yaml.load(text, _Loader)
    except Exception as error:  # PyYAML passes on whatever int, date and recursion raise
        raise ConfigError(f"{what} {path} is not valid YAML: {' '.join(str(error).split())}") from error
    require(
        isinstance(content, dict) and all(isinstance(key, str) for key in content),
        f"{what} {path} is empty or no mapping of names to values",
    )
    return content


def read_list(name: str, text: str) -> list[str]:
    """The items, as texts, of a list as YAML or Python writes it: [0, 1]."""
    try:
        items = yaml.load(text, yaml.BaseLoader)  # which leaves texts as they are
    except (yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"{name}={shown(text)} is not valid YAML; write a list like [0, 1]") from error
    return items
