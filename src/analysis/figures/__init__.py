"""The figures of trained transformers: one style, and one function for each figure.

Every function takes a table of runs (see `src.analysis.scores.select`) or arrays and returns a matplotlib Figure;
`save` writes it as PDF and PNG.
"""

from src.analysis.figures.bars import (
    INDUCTION_SETTING,
    INDUCTION_SETTINGS,
    flip_rate,
    fliprate_name,
    induction_accuracies,
    induction_name,
    sink_proportions,
    sparsity,
)
from src.analysis.figures.lines import (
    flip_rate_by_size,
    polarization,
    polarization_by_step,
    sample_tracking,
    training_curves,
)
from src.analysis.figures.maps import attention_map, attention_maps
from src.analysis.figures.style import COLUMN, FOLDER, KERNEL_COLOURS, PAGE, PUBLISHED_TYPES, panel_title, save

__all__ = [
    "COLUMN",
    "FOLDER",
    "INDUCTION_SETTING",
    "INDUCTION_SETTINGS",
    "KERNEL_COLOURS",
    "PAGE",
    "PUBLISHED_TYPES",
    "attention_map",
    "attention_maps",
    "flip_rate",
    "flip_rate_by_size",
    "fliprate_name",
    "induction_accuracies",
    "induction_name",
    "panel_title",
    "polarization",
    "polarization_by_step",
    "sample_tracking",
    "save",
    "sink_proportions",
    "sparsity",
    "training_curves",
]
