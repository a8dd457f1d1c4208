"""What train.py says at the end: tables, and the pictures of a sweep."""

import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import pandas as pd

from src.analysis import figures, scores
from src.config import RunConfig
from src.runs import LogError
from src.tasks import TASKS


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


SCORES = {  # of each task's runs
    "induction": {"sink_share": scores.sink_shares},
    "classification": {"sparsity": scores.sparsity_scores, "flip_rate": scores.flip_rates},
}


def of_sweep(runs: pd.DataFrame) -> str:
    """A row for each task and attention type: how many runs ended how, and the mean of what they measured."""
    runs = runs.assign(accuracy=runs.reindex(columns=[task.accuracy for task in TASKS.values()]).max(axis=1))
    for task, group in runs[runs["state"] == "finished"].groupby("task"):
        for name, score in SCORES[task].items():
            with suppress(LogError):  # runs that lack what it is of: a second layer
                runs.loc[group.index, name] = score(group)
    groups = runs.groupby(["task", "attention_type"], sort=False)
    measured = ["accuracy", *(name for own in SCORES.values() for name in own), "seconds"]
    table = groups[[name for name in measured if name in runs]].mean()
    counts = groups["state"].value_counts().unstack(fill_value=0)
    return counts.join(table.dropna(axis=1, how="all")).to_string(float_format="{:.3f}".format, na_rep="–")


def save_figures(runs: pd.DataFrame, title: str, folder: Path | str | None = None) -> list[Path]:
    """Save the pictures of a sweep, as far as its finished runs give any; the paths of the files."""
    runs = runs[runs["state"] == "finished"]
    folder = folder or figures.FOLDER
    paths = []
    for task, group in runs.groupby("task", sort=False):
        bars = {"induction": figures.sink_proportions, "classification": figures.sparsity}[task]
        kind = {"induction": "sink_share", "classification": "sparsity"}[task]
        types = [name for name in figures.PUBLISHED_TYPES if name in set(group["attention_type"])]
        curves = figures.training_curves(group, ("eval/loss", TASKS[task].accuracy, "attn_entropy"))
        with suppress(LogError):
            paths += figures.save(bars(group, types=types), f"{title}_{kind}", folder)
        paths += figures.save(curves, f"{title}_{task}_training", folder)
    return paths
