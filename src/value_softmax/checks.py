"""Input refused before any work starts: one sentence with the value, what is allowed, and how to fix it."""

import numpy as np


def array(name: str, value, *, ndim: int | tuple[int, ...]) -> np.ndarray:
    """`value` as a finite float64 array of `ndim` dimensions, contiguous and a copy; else ValueError."""
    try:
        result = np.array(value, dtype=np.float64, order="C")
    except (TypeError, ValueError):
        raise ValueError(f"{name} is no array of real numbers: give one, of equal rows") from None
    allowed = (ndim,) if isinstance(ndim, int) else ndim
    if result.ndim not in allowed or not result.size:
        dimensions = " or ".join(map(str, allowed))
        raise ValueError(f"{name} has shape {result.shape}: give it {dimensions} non-empty dimension(s)")
    if not np.isfinite(result).all():
        at = tuple(map(int, np.argwhere(~np.isfinite(result))[0]))
        raise ValueError(f"{name} is {result[at]} at {at}: every entry must be finite, replace it")
    return result


def shape(name: str, value: np.ndarray, expected: tuple[int, ...], why: str) -> None:
    """ValueError unless `value` has the `expected` shape, `why` saying where that comes from."""
    if value.shape != expected:
        raise ValueError(f"{name} has shape {value.shape}: it must be {expected}, {why}")


def positive(name: str, value: float) -> float:
    """`value` as a positive finite number; else ValueError."""
    number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
    if not (number and np.isfinite(value) and value > 0):
        raise ValueError(f"{name} is {value!r}: it must be a positive finite number, such as 0.1")
    return float(value)


def within(name: str, value: float, least: float, most: float, *, open_above: bool = False) -> float:
    """`value` as a number from `least` to `most`, `most` itself left out if `open_above`; else ValueError."""
    number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
    if not (number and least <= value <= most and not (open_above and value == most)):
        interval = f"[{least:g}, {most:g}{')' if open_above else ']'}"
        raise ValueError(f"{name} is {value!r}: it must be a number in {interval}")
    return float(value)


def count(name: str, value: int) -> int:
    """`value` as a positive whole number; else ValueError."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise ValueError(f"{name} is {value!r}: it must be a whole number, at least 1")
    return int(value)


def choice(name: str, value: str, allowed) -> str:
    """`value` if it is one of the `allowed` names; else ValueError."""
    if value not in tuple(allowed):
        raise ValueError(f"{name} is {value!r}: choose one of {', '.join(map(str, allowed))}")
    return value


def increasing(name: str, value, *, least: float = -np.inf) -> np.ndarray:
    """`value` as a float64 vector that increases strictly from at least `least`; else ValueError."""
    result = array(name, value, ndim=1)
    if (np.diff(result) <= 0).any():
        raise ValueError(f"{name} does not increase strictly: sort it and drop repeated entries")
    if result[0] < least:
        raise ValueError(f"{name} starts at {result[0]}: it must not be below {least}")
    return result


def distinct(name: str, value: np.ndarray) -> None:
    """ValueError if two entries of the vector `value` are equal."""
    values, counts = np.unique(value, return_counts=True)
    if len(values) < len(value):
        tied = values[counts > 1][0]
        raise ValueError(f"{name} holds {tied} twice: this statement needs distinct entries, perturb one")
