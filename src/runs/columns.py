"""The columns of a table of runs: each becomes what it is, once, however the table was written."""

import json
import re
from typing import Any

import numpy as np
import pandas as pd

from src.config import FIELD_TYPES, FIELDS, checked
from src.errors import ConfigError
from src.runs.reader import HISTORY
from src.values import kind_of

TEXTS = ("hash", "state", "error", "process", "device", "torch", "code")
NUMBERS = ("started", "seconds")
COUNTS = ("epoch", "step")

# bool, int, float or str, for the fields of RunConfig and the columns that every run has.
KINDS = {name: kind_of(annotation)[0] for name, annotation in FIELD_TYPES.items()}
KINDS |= dict.fromkeys(TEXTS, str) | dict.fromkeys(NUMBERS, float)


def is_measured(name: str) -> bool:
    """Whether a column is a result of training, by how results are called: a layer's begin with its number. Others are
    of the config, or say how the run went."""
    return "/" in name or name in COUNTS or re.match(r"\d+_", name) is not None


def plain(runs: pd.DataFrame) -> pd.DataFrame:
    """The table with plain numpy columns: numbers, truths and texts that are missing nowhere as such, texts with None
    where missing, numbers with NaN, histories as lists."""
    return pd.DataFrame({name: plain_column(name, runs[name]) for name in runs}, index=runs.index)


def plain_column(name: str, column: pd.Series) -> pd.Series:
    kind = KINDS.get(name)
    if name.startswith(HISTORY):
        return pd.Series([as_list(cell) for cell in column], index=column.index, dtype=object)
    if isinstance(column.dtype, np.dtype) and column.dtype.kind in "fi" and kind in (float, None):
        return column
    cells = column.astype(object).where(column.notna(), None)
    if name in FIELDS:
        known = {cell: as_field(name, cell) for cell in cells.unique()}
        cells = pd.Series([known[cell] for cell in cells], index=cells.index, dtype=object)
    if kind is str:
        return pd.Series([cell if cell is None else str(cell) for cell in cells], index=cells.index, dtype=object)
    types = {type(cell) for cell in cells}
    if types & {bool, np.bool_}:
        return cells.astype(bool) if types <= {bool, np.bool_} else cells
    return as_numbers(cells)


def as_field(name: str, cell: Any) -> Any:
    """The cell as what the field is; as it was where it is none, which other code may have."""
    if cell is None:
        return None
    if KINDS[name] is bool and cell in (0, 1):  # truths that were among numbers once
        return bool(cell)
    try:
        return checked(name, cell)
    except ConfigError:
        return cell


def as_list(cell: Any) -> list[float] | None:
    """A run's values over epochs, from an array, a list or a text in JSON; None where it has none."""
    cell = json.loads(cell) if isinstance(cell, str) else cell
    values = cell.tolist() if isinstance(cell, np.ndarray) else cell
    if not isinstance(values, list):
        return None
    return [float("nan") if v is None else float(v) if isinstance(v, str) else v for v in values]


def as_numbers(cells: pd.Series) -> pd.Series:
    """Numbers, and texts of numbers to the last bit; the cells as they are if one is neither."""
    try:
        return pd.Series([as_number(cell) for cell in cells], index=cells.index)
    except (TypeError, ValueError):
        return cells


def as_number(cell: Any) -> float:
    if cell is None or (isinstance(cell, str) and cell.strip().lower() in ("", "none", "null")):
        return float("nan")
    if isinstance(cell, str):
        return int(cell) if re.fullmatch(r"[+-]?\d{1,18}", cell.strip()) else float(cell)
    return cell if isinstance(cell, int) else float(cell)
