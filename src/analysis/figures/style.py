"""The style of all figures: sizes, fonts, colours, names of attention types, notes, and how they are saved."""

import functools
import itertools
import os
import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from src.analysis.selection import in_words, setting_in_words, settled, what_varies
from src.model.attention import PAPER
from src.model.registry import ATTENTION, describe
from src.runs import COMMITTED, ROOT, LogError
from src.tasks import Task

COLUMN, PAGE = 3.25, 6.75  # widths in inches: one column of the paper, and both
FOLDER = ROOT / "visualizations" / "fig"  # the committed figures
OWN_FOLDER = ROOT / "logs" / "figures"  # of one's own runs

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
    "legend.title_fontsize": 8,
    "legend.frameon": False,
    "lines.linewidth": 1.2,
    "figure.constrained_layout.use": True,
    "figure.dpi": 150,
    "savefig.dpi": 300,
    "pdf.fonttype": 42,  # text stays text
}
IN_STYLE = ["default", STYLE]  # nothing is left of a user's matplotlibrc: its text.usetex, say, needs LaTeX
plt.style.use(IN_STYLE)


def folder_for(source: Any) -> Path:
    """Where figures of the runs that `load_runs(source)` gives are saved: those of the committed table are committed,
    others are one's own."""
    committed = isinstance(source, str | os.PathLike) and Path(source).resolve() == COMMITTED.resolve()
    return FOLDER if committed else OWN_FOLDER


def save(figure: Figure, name: str, folder: Path | str | None = None) -> list[Path]:
    """Write `figure` as `name`.pdf and `name`.png into `folder` (made if missing; by default FOLDER); the two paths.

    A file is whole or not there: it is written under another name first.
    """
    folder = Path(folder or FOLDER)
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.{kind}" for kind in ("pdf", "png")]  # a name may hold dots: aux0.2
    for path in paths:
        # no date in the PDF: the same figure is the same file
        about = {"CreationDate": None} if path.suffix == ".pdf" else None
        with written_whole(path) as unfinished, plt.style.context(IN_STYLE):
            figure.savefig(unfinished, format=path.suffix[1:], metadata=about)
    return paths


class written_whole:  # noqa: N801, used like a function
    """A context that gives a name to write under, which becomes `path` at its end, unless something fails."""

    def __init__(self, path: Path):
        self.path, self.unfinished = path, path.with_name(f".{path.name}.{os.getpid()}.part")

    def __enter__(self) -> Path:
        return self.unfinished

    def __exit__(self, kind, *_) -> None:
        if kind is None:
            os.replace(self.unfinished, self.path)
        else:
            self.unfinished.unlink(missing_ok=True)


def or_sentence(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """A figure function that, where the table has nothing to draw, gives a figure with the sentence that says so."""

    @functools.wraps(draw)
    def drawn(*args, **kwargs) -> Figure:
        before = set(plt.get_fignums())
        try:
            return draw(*args, **kwargs)
        except LogError as error:
            for begun in set(plt.get_fignums()) - before:
                plt.close(begun)
            figure = plt.figure(figsize=(COLUMN, 1.2))
            figure.text(0.5, 0.5, balanced(f"Nothing to show: {error}", 55), ha="center", va="center", color="dimgrey")
            return figure

    return drawn


# Attention types

CYCLE = ("#882255", "#44AA99", "#999933", "#332288", "#AA4499", "#117733", "#661100", "#6699CC")  # after Tol
SECTIONS = {"paper": "the paper's"} | dict.fromkeys(("outlet", "sparse", "gate", "scale"), "made against sinks")
SECTIONS |= {"own": "own"}  # headings of the groups of types, in their order
PUBLISHED_TYPES = [name for name in PAPER if name != "uniform"]
KERNEL_COLOURS = {kind.label: kind.colour for kind in PAPER.values()}


@dataclass(frozen=True)
class Look:
    """How a figure shows an attention type: what it calls the kernel, whether that is normalised, the colour, and
    under which heading it stands."""

    label: str
    normalised: bool
    colour: str
    section: str

    @property
    def title(self) -> str:
        return self.label + (", not normalised" if not self.normalised else "")

    @property
    def kernel(self) -> tuple[str, str]:
        return self.section, self.label

    @property
    def line(self) -> str:
        return "-" if self.normalised else "--"


def types_of(runs: pd.DataFrame) -> list[str]:
    """The attention types of a table; `uniform`, which learns nothing, only if it is alone."""
    names = list(runs["attention_type"].dropna().unique())
    return [name for name in names if name != "uniform"] or names


def looks(names: Iterable[str]) -> dict[str, Look]:
    """How a figure shows each of these attention types, in its order: section by section, twins beside each other.

    A type of one's own whose name another has too (f of a.py and f of b.py) is called by its file as well.
    """
    known = list(ATTENTION)
    names = sorted(set(names), key=lambda name: (known.index(name) if name in ATTENTION else len(known), name))
    kinds = {name: describe(name) for name in names}
    called = [(kind.label, kind.normalised) for kind in kinds.values()]
    alone = {
        name for name, kind in kinds.items() if name in ATTENTION or called.count((kind.label, kind.normalised)) == 1
    }
    labels = {name: kind.label if name in alone else name for name, kind in kinds.items()}
    cycle, colours = itertools.cycle(CYCLE), {}
    for name, kind in kinds.items():  # twins have one
        if (kind.group, labels[name]) not in colours:
            colours[kind.group, labels[name]] = kind.colour or next(cycle)
    found = {
        n: Look(labels[n], k.normalised, colours[k.group, labels[n]], SECTIONS.get(k.group, k.group))
        for n, k in kinds.items()
    }
    sections, kernels = list(dict.fromkeys(SECTIONS.values())), [look.kernel for look in found.values()]

    def place(name: str) -> tuple:
        look = found[name]
        section = sections.index(look.section) if look.section in sections else len(sections)
        return section, kernels.index(look.kernel), not look.normalised

    return {name: found[name] for name in sorted(found, key=place)}


# Words


def balanced(text: str, width: int) -> str:
    """The text in lines of at most `width` characters, all of about one length."""
    lines = textwrap.wrap(text, width)
    while width > 1 and len(narrower := textwrap.wrap(text, width - 1)) == len(lines) and len(lines) > 1:
        lines, width = narrower, width - 1
    return "\n".join(lines)


def title(figure: Figure, runs: pd.DataFrame, besides: Sequence[str] = ()) -> str:
    """What all of the runs have in common, `besides` aside, in lines as wide as the figure."""
    return balanced(setting_in_words(settled(runs), besides), int(17 * figure.get_figwidth()))


def add_note(figure: Figure, note: str, runs: pd.DataFrame, besides: Sequence[str] = ()) -> None:
    """A line below the figure: the note, in what the runs differ (apart from `besides`, which has panels of its own),
    and what may be misread."""
    pooled = what_varies(settled(runs).drop(columns=list(besides), errors="ignore"))
    how = "In all" if besides else "Pooled"  # for not every panel need have runs of each
    parts = [note] + ([f"{how}: {pooled}"] if pooled else [])
    parts += [caution(runs["attention_type"])] * bool(caution(runs["attention_type"]))
    figure.supxlabel(balanced(". ".join(parts), int(21 * figure.get_figwidth())), fontsize=6, color="dimgrey")


def caution(names: Iterable[str]) -> str:
    """What may be misread where a figure has these attention types."""
    misread = {"raw_dotproduct_norm", "raw_dotproduct_unnorm"} & set(names)
    return "“linear” is raw_dotproduct_… in configs, “elu · elu” is linear_…" if misread else ""


def over_seeds(runs: pd.DataFrame, what: str = "mean", equally: Sequence[str] = ()) -> str:
    """What a line, a bar or a point is: a mean with its interval, if any has one; see `scores.by_type`."""
    seeds = runs.groupby(["attention_type", *equally], dropna=False)["seed"].nunique()
    if (seeds.groupby("attention_type").min() > 1).any():
        return f"{what}, 95% t interval over seeds"
    return f"{what}, no interval: a part has one seed" if seeds.max() > 1 else f"{what} over runs of one seed"


def filling(shown: dict[str, Look]) -> list[str]:
    """What filled and hollow bars, or solid and dashed lines, are. Only the paper's kernels are with normalisation and
    without; of others it is not said, and they are drawn like the first."""
    all_the_papers = all(look.section == SECTIONS["paper"] for look in shown.values())
    return ["normalised" if all_the_papers else "normalised, or not the paper's", "not normalised"]


def add_legend(figure: Figure, heading: str, keys: Sequence[Any], names: Sequence[str], columns: int) -> None:
    """A legend above everything else, under the figure's title."""
    where = {"loc": "outside upper center", "ncols": columns, "columnspacing": 1.2}
    figure.legend(keys, names, title=heading, **where).get_title().set_multialignment("center")


def panel_title(fields: Sequence[str], values: Sequence[Any], task: type[Task] = Task) -> str:
    """Fields and their values in words."""
    return ", ".join(in_words(field, value, task) for field, value in zip(fields, values, strict=True))
