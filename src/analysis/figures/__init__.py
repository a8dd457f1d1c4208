"""The figures of trained transformers: one style, and one function for each figure.

Every function takes a table of runs (see `src.analysis.selection`) or arrays and returns a matplotlib Figure, which
says in a sentence what the table cannot show; `save` writes it as PDF and PNG.
"""

from src.analysis.figures.bars import (
    INDUCTION_SETTING,
    INDUCTION_SETTINGS,
    bar_figure,
    flip_rate,
    fliprate_name,
    induction_accuracies,
    induction_name,
    score_bars,
    sink_proportions,
    sparsity,
)
from src.analysis.figures.benchmark import optimizers, overview, sink_profiles
from src.analysis.figures.lines import (
    flip_rate_by_size,
    polarization,
    polarization_by_step,
    sample_tracking,
    training_curves,
)
from src.analysis.figures.maps import BLUE_RED, attention_map, attention_maps
from src.analysis.figures.style import (
    COLUMN,
    FOLDER,
    KERNEL_COLOURS,
    OWN_FOLDER,
    PAGE,
    PUBLISHED_TYPES,
    filling,
    folder_for,
    looks,
    or_sentence,
    panel_title,
    save,
    types_of,
)

__all__ = [
    "BLUE_RED",
    "COLUMN",
    "FOLDER",
    "INDUCTION_SETTING",
    "INDUCTION_SETTINGS",
    "KERNEL_COLOURS",
    "OWN_FOLDER",
    "PAGE",
    "PUBLISHED_TYPES",
    "attention_map",
    "attention_maps",
    "bar_figure",
    "filling",
    "flip_rate",
    "flip_rate_by_size",
    "fliprate_name",
    "folder_for",
    "induction_accuracies",
    "induction_name",
    "looks",
    "or_sentence",
    "optimizers",
    "overview",
    "panel_title",
    "polarization",
    "polarization_by_step",
    "sample_tracking",
    "save",
    "score_bars",
    "sink_profiles",
    "sink_proportions",
    "sparsity",
    "training_curves",
    "types_of",
]
