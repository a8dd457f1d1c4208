"""The figures: one style, and one function for each figure.

Every function takes a table or arrays and returns a matplotlib Figure; `save` writes it as PDF and PNG.
"""

from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

COLUMN, PAGE = 3.25, 6.75  # widths in inches: one column of the paper, and both
FOLDER = Path(__file__).parents[1] / "visualizations" / "fig"

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
        figure.savefig(path)
    return paths
