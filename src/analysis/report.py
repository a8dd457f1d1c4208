"""What train.py says at the end: tables, and the pictures of a sweep."""

import functools
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from src.analysis import figures, scores
from src.analysis.selection import ENDED, settled, task_class, varying
from src.config import RunConfig
from src.extensions import short_name

MOST_ROWS = 60  # of a closing table, and
MOST_PANELS = 12  # of a picture: beyond, nobody reads them


def difference(config: RunConfig) -> str:
    """What makes the run another than its task's default run."""
    default = RunConfig(task=config.task).to_dict()
    changed = {k: v for k, v in config.to_dict().items() if v != default[k] or k == "task"}
    return ", ".join(f"{k}={v}" for k, v in changed.items())


def duration(seconds: float) -> str:
    """In words, to two figures: 40 s, 12 min, 3.5 h."""
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.2g} {unit}" if seconds < 10 * size else f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def of_run(config: RunConfig, row: dict[str, Any]) -> str:
    """The results of one run: what is measured once, and a table of what is measured for each head."""
    once, heads = [f"{config.title}: {row['state']}"], {}
    for key, value in row["summary"].items():
        if match := re.fullmatch(r"(?:mixing/)?(\d+)_(\d+)[_/](.+)", key):
            layer, head, metric = match.groups()
            heads.setdefault(f"layer {layer} head {head}", {})[metric] = value
        else:
            once.append(f"  {key:<20} {value:.6g}")
    table = pd.DataFrame.from_dict(heads, orient="index").T.to_string(float_format="{:.3f}".format)
    return "\n".join([*once, table])


def of_sweep(runs: pd.DataFrame) -> str:
    """A table for each task, with a row for each attention type and each value of whatever else varies but seeds: how
    many runs ended how, and the mean of what finished runs measured."""
    runs = settled(runs)
    tables = [of_task(short_name(name), group) for name, group in runs.groupby("task", sort=False)]
    return "\n\n".join(tables)


def of_task(title: str, runs: pd.DataFrame) -> str:
    """The table of one task's runs under its title."""
    task = task_class(runs["task"].iloc[0])
    runs = scores.scored(runs, task)
    apart = [name for name in varying(runs) if name != "seed"]
    groups = runs.groupby([*apart, "attention_type"], sort=False, dropna=False)
    measured = [name for name in (task.accuracy, *task.scores, "seconds") if name in runs]
    table = groups["state"].value_counts().unstack(fill_value=0).join(groups[measured].mean().dropna(axis=1, how="all"))
    more = f"\n… and {len(table) - MOST_ROWS} rows more: load_runs has them all" if len(table) > MOST_ROWS else ""
    text = table.head(MOST_ROWS).to_string(float_format="{:.3f}".format, na_rep="–")
    return f"{title}: {len(runs):,} run{'s' if len(runs) > 1 else ''}\n{text}{more}"


def save_figures(runs: pd.DataFrame, title: str, folder: Path | str | None = None) -> list[Path]:
    """Save the pictures of a sweep, as far as the runs that ended give any; the paths of the files. A picture that
    fails is a sentence, and costs no other."""
    plt.switch_backend("agg")  # files alone: no window system that a matplotlibrc names is needed
    runs, paths = settled(runs), []
    for task, group in runs[runs["state"].isin(ENDED)].groupby("task", sort=False):
        for kind, draw in pictures(task, group).items():
            name = f"{title}_{short_name(task)}_{kind}"
            try:
                paths += figures.save(draw(), name, folder or figures.OWN_FOLDER)
            except Exception as error:  # whatever it is, the runs are logged, and other pictures wait
                reason = " ".join(str(error).split())
                print(f"no picture {name}: {reason or type(error).__name__:.300}", file=sys.stderr)
            plt.close("all")
    return paths


def pictures(name: str, runs: pd.DataFrame) -> dict[str, Callable[[], Figure]]:
    """What is drawn at the end of a sweep of a task: its first score, and its training; panels for what varies."""
    task, by = task_class(name), [field for field in varying(runs) if field != "seed"]
    num = len(runs[by].drop_duplicates()) if by else 1
    by, num = (by, num) if num <= MOST_PANELS else ([], 1)  # pooled, as the note says
    options = {"by": by, "columns": min(num, 1 if num < 2 else 2 if num < 5 else 3)}
    drawn = {"training": functools.partial(figures.training_curves, runs, by=by if num <= 4 else [])}
    for kind in [kind for kind, score in task.scores.items() if scores.has_columns(runs, score.columns)][:1]:
        score = functools.partial(figures.score_bars, runs, task.scores[kind], task.solved, **options)
        drawn = {kind: score} | drawn
    return drawn
