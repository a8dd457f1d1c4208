"""Maps of attention weights."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, LinearSegmentedColormap
from matplotlib.figure import Figure

from src.analysis.figures.style import PAGE, caution, looks

PUBLISHED = LinearSegmentedColormap.from_list("attention", ["crimson", "#F4E9D3", "green"])
BLUE_RED = plt.colormaps["RdBu_r"]  # the same for readers who cannot tell green from red


def draw_map(axes: Axes, weights: np.ndarray, names: Sequence[str], colours: Colormap = PUBLISHED) -> None:
    """Attention weights (T, T), queries down, keys right, from −1 to 1; `names` of the T tokens."""
    edge = "white" if colours is PUBLISHED else "#E4E4E4"
    picture = axes.pcolormesh(weights, cmap=colours, vmin=-1, vmax=1, edgecolors=edge, linewidth=0.3)
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


def attention_maps(
    models: dict[str, np.ndarray],
    names: Sequence[str],
    positions: dict[str, str],
    layer: int,
    colours: Colormap = PUBLISHED,
    setting: str = "",
) -> Figure:
    """The heads (H, T, T) of one layer of each model, by attention type, on one sequence side by side, with the scale
    of colours and, above each head, the range of its weights.

    positions: how each model has them, `positional_type`. layer: its number, the first is 0. setting: what the title
    says of the models.
    """
    num_heads = max(map(len, models.values()))
    size = (PAGE, 0.35 + 1.72 * len(models))
    figure, grid = plt.subplots(len(models), num_heads, figsize=size, squeeze=False)
    shown = looks(models)
    for row, (name, heads) in zip(grid, models.items(), strict=True):
        for head, (axes, weights) in enumerate(zip(row, heads, strict=False)):
            draw_map(axes, weights, names, colours)
            span = f"{weights.min():.1f} to {weights.max():.1f}".replace("-", "−")
            axes.set_title(f"layer {layer}, head {head}\nweights {span}", fontsize=6, pad=2)
        for axes in row[len(heads) :]:
            axes.set_visible(False)
        text = shown[name].title.replace(", ", ",\n")
        row[0].set_ylabel(f"{text}\n(positions: {positions[name]})\nquery", fontsize=7)
    for axes in grid[-1]:
        axes.set_xlabel("key", fontsize=6)
    figure.suptitle(setting, fontsize=8)
    figure.supxlabel(caution(models), fontsize=6, color="dimgrey")
    figure.colorbar(grid[0, 0].collections[0], ax=grid, shrink=0.5, label="attention weight", extend="both", aspect=30)
    return figure
