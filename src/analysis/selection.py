"""Which runs: the rows of a table that a figure or a claim is of, and in what they differ."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from src.config import DEFAULTS, FIELDS, IN_EVERY_HASH
from src.errors import ConfigError, LogError
from src.extensions import short_name
from src.runs.columns import plain
from src.tasks import Task, find_task

ENDED = ("finished", "diverged")  # the states of a run that has been trained to its end, good or bad
ABOUT = {"hash", "state", "error", "started", "seconds", "process", "device", "torch", "code"}  # no results
NOT_POOLED = ("task", "attention_type", "seed", "source")  # fields that say what is compared, and over what


def settled(runs: pd.DataFrame) -> pd.DataFrame:
    """The same runs as a table that can be worked with: each run once, labels of its own, NumPy's types, and no
    results but of finished runs.

    Tables joined by `pd.concat` repeat labels, and perhaps runs; other programs write pandas' nullable types; a run
    that diverged may have measured something before. What is settled stays as it is.
    """
    if any(pd.api.types.is_extension_array_dtype(kind) and kind != "str" for kind in runs.dtypes):
        runs = plain(runs)
    if not runs.index.is_unique:
        runs = runs.reset_index(drop=True)
    if all(name in runs for name in IN_EVERY_HASH):
        runs = runs[~_repeated(runs)]
    unfinished = ~finished(runs)
    results = [name for name in runs if name not in FIELDS and name not in ABOUT]
    if unfinished.any() and runs.loc[unfinished, results].notna().any(axis=None):
        runs = runs.assign(**runs[results].where(~unfinished)).copy()  # whole again, not in a piece for each column
    return runs


def _repeated(runs: pd.DataFrame) -> pd.Series:
    """Which rows are of a run that another row has: one that ended before all others, else the first."""
    fields = runs[[name for name in FIELDS if name in runs]]
    repeated = fields.duplicated()
    if not repeated.any():
        return repeated
    states = runs["state"] if "state" in runs else pd.Series(ENDED[0], index=runs.index)
    rank = states.map({state: place for place, state in enumerate(ENDED)}).fillna(len(ENDED))
    return fields.iloc[np.argsort(rank.to_numpy(), kind="stable")].duplicated().reindex(runs.index)


def finished(runs: pd.DataFrame) -> pd.Series:
    """Which runs are finished: all of a table without states."""
    return runs["state"] == "finished" if "state" in runs else pd.Series(True, index=runs.index)


def require_columns(runs: pd.DataFrame, names: Sequence[str]) -> None:
    """LogError that names what the table lacks."""
    if not len(runs.columns):
        raise LogError("the table of runs is empty; train some, or name another source")
    missing = [name for name in names if name not in runs]
    if missing:
        raise LogError(f"the table of runs lacks {', '.join(missing)}; is it of the other task, or of other code?")


def require_runs(runs: pd.DataFrame, what: str) -> pd.DataFrame:
    """The runs; LogError if there is none."""
    if not len(runs):
        raise LogError(f"the table has no run {what}")
    return runs


def select(runs: pd.DataFrame, **fields: Any) -> pd.DataFrame:
    """The runs that ended, well or diverged (which have no results then: see `settled`), and whose fields have these
    values: one each, a list of them, or None for any. Of a file of the user's that was edited in between the runs of
    its last version, unless `source` is among the fields."""
    require_columns(runs, ["state", *fields])
    return among(settled(runs), **fields)


def among(runs: pd.DataFrame, **fields: Any) -> pd.DataFrame:
    """`select` from a table that is settled already."""
    runs = runs if "source" in fields else last_version(runs)
    chosen = runs["state"].isin(ENDED)
    for name, values in fields.items():
        if values is not None:
            chosen &= runs[name].isin(values if isinstance(values, list | tuple) else [values])
    return runs[chosen]


def was_edited(runs: pd.DataFrame) -> bool:
    """Whether runs of one task and attention type are of several versions of a file of the user's."""
    names = ["task", "attention_type", "source"]
    if not set(names) <= set(runs.columns):
        return False
    return bool(runs[names].dropna().drop_duplicates().duplicated(names[:2]).any())


def last_version(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs without those of a task and attention type whose source is not the last one that was trained."""
    if not was_edited(runs):
        return runs
    order = runs.sort_values("started") if "started" in runs else runs
    last = order.groupby(["task", "attention_type"])["source"].transform("last")
    return runs[runs["source"].isna() | (runs["source"] == last.reindex(runs.index))]


def of_task(runs: pd.DataFrame, task: str) -> pd.DataFrame:
    """The runs of a task that ended, perhaps none; LogError where the table lacks what tells them apart."""
    require_columns(runs, ["task", "state", "attention_type", "seed"])
    chosen = select(runs, task=task)
    settings = task_class(task).settings
    if not len(chosen):
        return chosen.reindex(columns=[*chosen.columns, *(name for name in settings if name not in chosen)])
    require_columns(chosen, settings)
    return chosen


def of_one_task(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs; LogError if they are of several tasks, whose results have no mean."""
    names = runs["task"].dropna().unique() if "task" in runs else []
    if len(names) > 1:
        raise LogError(f"the runs are of {len(names)} tasks, {', '.join(names)}; select those of one")
    return runs


def task_class(name: str) -> type[Task]:
    """A task's class; of a task whose file is not here, what all tasks have."""
    try:
        return find_task(name)
    except ConfigError:
        return Task


def task_of(runs: pd.DataFrame) -> type[Task]:
    """The class of the one task that the runs are of; what all tasks have where that is not said."""
    names = runs["task"].dropna().unique() if "task" in runs else []
    return task_class(names[0]) if len(names) == 1 else Task


def commonest(runs: pd.DataFrame, name: str) -> Any:
    """The value of a field that most runs have; where several are as common, the default of RunConfig if it is one."""
    counts = runs[name].value_counts()
    most = list(counts.index[counts == counts.max()])
    default = DEFAULTS[name]
    return default if default in most else min(most)


def preferred(runs: pd.DataFrame, **fields: Any) -> pd.DataFrame:
    """The runs whose fields have these values if there are any, else those with the commonest values."""
    chosen = select(runs, **fields)
    return chosen if len(chosen) else usual(select(runs), *fields)


def usual(runs: pd.DataFrame, *names: str) -> pd.DataFrame:
    """The runs that have the commonest value of each of these fields."""
    for name in names:
        values = runs[name].dropna().to_numpy() if name in runs else np.array([])
        if (values[1:] != values[:1]).any():
            runs = runs[runs[name] == commonest(runs, name)]
    return runs


def alike(runs: pd.DataFrame, *free: str) -> pd.DataFrame:
    """Runs that may be pooled: those with the commonest value of every field but these, attention type and seed."""
    return usual(runs, *(name for name in FIELDS if name not in (*NOT_POOLED, *free)))


def varying(runs: pd.DataFrame) -> dict[str, list[Any]]:
    """The fields in which the runs differ, task and attention type aside, with their values in order; source only
    where runs of one type differ in it, whose file was edited."""
    names = [name for name in FIELDS if name in runs and (name == "seed" or name not in NOT_POOLED)]
    names += ["source"] * was_edited(runs)
    values = {name: in_order(runs[name].dropna().unique()) for name in names}
    return {name: found for name, found in values.items() if len(found) > 1}


def in_order(values: Sequence[Any]) -> list[Any]:
    return sorted(values, key=lambda value: (isinstance(value, str), value))


WORDS = {  # of fields that all tasks have
    ("use_mlp", True): "MLP",
    ("use_mlp", False): "no MLP",
    ("use_layernorm", True): "LayerNorm",
    ("use_layernorm", False): "no LayerNorm",
    ("positional_type", "no"): "no positions",
    ("num_layers", 1): "1 layer",
    ("num_heads", 1): "1 head",
    ("num_epochs", 1): "1 epoch",
    ("use_residual", True): "skip connections",
    ("use_residual", False): "no skip connections",
    "positional_type": "positions",
    "vocab_size": "vocabulary",
}
AFTER = {"num_layers": "layers", "num_heads": "heads", "num_epochs": "epochs"}  # words that follow the value


def in_words(field: str, value: Any, task: type[Task] = Task) -> str:
    """A field and its value in words, joined by spaces at which no line breaks."""
    shown = f"{value:g}" if isinstance(value, float) else f"{value}"
    text = f"{shown} {AFTER[field]}" if field in AFTER else f"{words_for(field, task)} {shown}"
    return (WORDS | dict(task.words)).get((field, value), text).replace(" ", "\N{NO-BREAK SPACE}")


def words_for(field: str, task: type[Task] = Task) -> str:
    return (WORDS | dict(task.words)).get(field, field)


def what_varies(runs: pd.DataFrame) -> str:
    """The fields in which the runs differ and their values, with the number of runs of each where these differ:
    `seed 0–4, lr 0.001/0.01 (60/12 runs)`; empty where they differ in nothing."""
    task, parts = task_of(runs), []
    for name, values in varying(runs).items():
        whole = name == "seed" and values == list(range(int(values[0]), int(values[-1]) + 1))
        shown = [values[0], values[-1]] if whole else values
        words = [in_words(name, value, task) for value in shown]
        same = f"{words_for(name, task)}\N{NO-BREAK SPACE}"
        if all(word.startswith(same) for word in words):
            words = [words[0], *(word.removeprefix(same) for word in words[1:])]
        counts = runs[name].value_counts().reindex(values)
        uneven = name != "seed" and counts.min() < counts.max()
        counted = f" ({_listed(map(str, counts))} runs)" if uneven else ""
        parts.append(("–".join(words) if whole else _listed(words)) + counted)
    return ", ".join(parts)


def _listed(values: Iterable[str], most: int = 6) -> str:
    values = list(values)
    return "/".join(values if len(values) <= most else [*values[:2], "…", values[-1]])


def setting_in_words(runs: pd.DataFrame, besides: Sequence[str] = ()) -> str:
    """What the runs have in common: their task, and the fields that tell its runs apart or are not its defaults,
    `besides` aside."""
    task = task_of(runs)
    always = {*task.settings, "use_mlp", "use_layernorm", "vocab_size"}
    names = runs["task"].dropna().unique() if "task" in runs else []
    parts = [" and ".join(short_name(name).replace("_", " ") for name in names)] if len(names) else []
    for name in sorted(FIELDS, key=lambda name: name == "lr"):
        values = runs[name].dropna().unique() if name in runs and name not in (*NOT_POOLED, *besides) else []
        if len(values) == 1 and (name in always or values[0] != task.defaults.get(name, DEFAULTS[name])):
            parts.append(in_words(name, values[0], task))
    text = ", ".join(parts)
    return text[:1].upper() + text[1:]
