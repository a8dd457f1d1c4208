"""Maps of attention weights."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from src.analysis.figures.style import PAGE
from src.model.registry import ATTENTION

MAP_COLOURS = LinearSegmentedColormap.from_list("attention", ["crimson", "#F4E9D3", "green"])


def draw_map(axes: Axes, weights: np.ndarray, names: Sequence[str]) -> None:
    """Attention weights (T, T), queries down, keys right, from −1 to 1; `names` of the T tokens."""
    picture = axes.pcolormesh(weights, cmap=MAP_COLOURS, vmin=-1, vmax=1, edgecolors="white", linewidth=0.3)
    picture.set_rasterized(False)
    places = np.arange(len(names)) + 0.5
    axes.set_xticks(places, names, rotation=90)
    axes.set_yticks(places, names)
    axes.tick_params(length=0, pad=1.5, labelsize=5)
    axes.set(aspect="equal")
    axes.invert_yaxis()
    axes.spines[:].set_visible(False)


def attention_map(weights: np.ndarray, names: Sequence[str]) -> Figure:
    """One head's attention on one sequence, as `draw_map`."""
    figure, axes = plt.subplots(figsize=(1.7, 1.7))
    draw_map(axes, weights, names)
    return figure


def attention_maps(models: dict[str, np.ndarray], names: Sequence[str], positions: dict[str, str]) -> Figure:
    """The heads (H, T, T) of each model, by attention type, on one sequence side by side, with the scale of colours
    and, above each head, the range of its weights. positions: how each model has them, `positional_type`."""
    num_heads = max(map(len, models.values()))
    figure, grid = plt.subplots(len(models), num_heads, figsize=(PAGE, 1.62 * len(models)), squeeze=False)
    for row, (title, heads) in zip(grid, models.items(), strict=True):
        for head, (axes, weights) in enumerate(zip(row, heads, strict=True)):
            draw_map(axes, weights, names)
            span = f"{weights.min():.1f} to {weights.max():.1f}".replace("-", "−")
            axes.set_title(f"head {head}: {span}", fontsize=6, pad=2)
        kind = ATTENTION[title]
        suffix = "" if kind.normalised else ",\nnot normalised"
        row[0].set_ylabel(f"{kind.label}{suffix}\n(positions: {positions[title]})\nquery", fontsize=7)
    for axes in grid[-1]:
        axes.set_xlabel("key", fontsize=6)
    figure.colorbar(grid[0, 0].collections[0], ax=grid, shrink=0.5, label="attention weight", extend="both", aspect=30)
    return figure
