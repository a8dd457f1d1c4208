"""The style of all figures: sizes, fonts, colours, notes, and how they are saved."""

import textwrap
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from src.analysis import scores
from src.model.registry import ATTENTION
from src.runs import ROOT

COLUMN, PAGE = 3.25, 6.75  # widths in inches: one column of the paper, and both
FOLDER = ROOT / "visualizations" / "fig"

STYLE = {
    "font.family": "serif",
    "font.size": 8,
    "mathtext.fontset": "cm",  # the look of LaTeX without needing it
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "lines.linewidth": 1.2,
    "figure.constrained_layout.use": True,
    "figure.dpi": 150,
    "savefig.dpi": 300,
    "pdf.fonttype": 42,  # text stays text
}
plt.rcParams.update(STYLE)


def save(figure: Figure, name: str, folder: Path | str = FOLDER) -> list[Path]:
    """Write `figure` as `name`.pdf and `name`.png into `folder` (made if missing); the two paths."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.{kind}" for kind in ("pdf", "png")]  # a name may hold dots: aux0.2
    for path in paths:
        # no date in the PDF: the same figure is the same file
        figure.savefig(path, metadata={"CreationDate": None} if path.suffix == ".pdf" else None)
    return paths


# Colours of the kernels, by the label that figures give them (Okabe-Ito, safe for colour blindness).
KERNEL_COLOURS = dict(
    zip(
        dict.fromkeys(kind.label for kind in ATTENTION.values()),
        ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#666666"],
        strict=True,
    )
)
PUBLISHED_TYPES = [name for name in ATTENTION if name != "uniform"]


def add_note(figure: Figure, rest: str, runs: pd.DataFrame, pooled: str = "Pooled") -> None:
    """A line below the figure: what its means and intervals are over."""
    note = f"Mean, 95% t interval over seeds, {rest}. {pooled}: {scores.what_varies(runs)}"
    fixed = {name: set(runs[name]) for name in ("lr", "num_layers", "num_heads") if name in runs}
    note += "".join(f"; {name} {values.pop():g}" for name, values in fixed.items() if len(values) == 1)
    figure.supxlabel(textwrap.fill(note, int(21 * figure.get_figwidth())), fontsize=6, color="dimgrey")


def warn_if_empty(some: bool, what: str) -> None:
    """Warn of a figure that has nothing to show."""
    if not some:
        warnings.warn(f"no run for {what}: an empty figure", stacklevel=3)


def panel_title(fields: Sequence[str], values: Sequence[Any]) -> str:
    """Fields and their values in words."""
    words = {("use_mlp", True): "MLP", ("use_mlp", False): "no MLP"}
    words |= {("use_layernorm", True): "LayerNorm", ("use_layernorm", False): "no LayerNorm"}
    words |= {("shift_query_token", True): "shift", ("shift_query_token", False): "no shift"}
    words |= {("positional_type", "no"): "no positions"}
    names = {"aux_loss_weight": "aux", "positional_type": "positions"}
    parts = []
    for field, value in zip(fields, values, strict=True):
        shown = f"{value:g}" if isinstance(value, float) else value
        part = words.get((field, value), f"{names.get(field, field)} {shown}")
        parts.append(part.replace(" ", "\N{NO-BREAK SPACE}"))  # lines break between parts alone
    return ", ".join(parts)
