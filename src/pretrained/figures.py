"""The figures of pretrained models: analyses in, a matplotlib Figure out."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from src.analysis.figures import COLUMN, KERNEL_COLOURS, PAGE
from src.pretrained.results import Analysis
from src.pretrained.statistics import MASSIVE_MAGNITUDE

OTHERS = ["#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#666666"]


def colour(found: Analysis, place: int) -> str:
    return KERNEL_COLOURS.get(found.title, OTHERS[place % len(OTHERS)])


def sink_scores(analyses: Sequence[Analysis]) -> Figure:
    """Figure 7: histograms of the heads' sparsity score, 20 bins for each model.

    Left the mean largest weight, as published; right its mean share of the row's sum, as the text defines it.
    The two are one for softmax.
    """
    figure, grid = plt.subplots(1, 2, figsize=(PAGE, 2.2), sharey=True)
    for axes, name, label in zip(
        grid,
        ("max_proportion", "max_share"),
        ("mean largest weight (as published)", "mean largest weight / row's sum"),
        strict=True,
    ):
        for i, found in enumerate(analyses):
            scores = found.arrays[name].ravel()
            axes.hist(scores, bins=20, alpha=0.6, color=colour(found, i), label=found.title)
        axes.set(xlim=(0, 1), xlabel=label)
    grid[0].set_ylabel("number of heads")
    figure.legend(*grid[0].get_legend_handles_labels(), loc="outside upper center", ncols=len(analyses))
    return figure


def first_token_map(found: Analysis) -> Figure:
    """Mean share of the first token in the rows of each head, layers × heads."""
    shares = found.arrays["first_token_proportion"]
    layers, heads = shares.shape
    edges = (0.5, heads + 0.5, 0.5, layers + 0.5)  # counted from 1, as in the other figures
    figure, axes = plt.subplots(figsize=(COLUMN, 0.9 + COLUMN * 0.75 * min(layers / heads, 1.5)))
    picture = axes.imshow(shares, vmin=0, vmax=1, cmap="viridis", aspect="auto", origin="lower", extent=edges)
    axes.set(xlabel="head", ylabel="layer", title=found.title)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.yaxis.get_major_locator().set_params(integer=True)
    figure.colorbar(picture, label="share of the first token")
    return figure


def entropy_by_depth(analyses: Sequence[Analysis]) -> Figure:
    """Entropy over log of the number of keys, by depth: each head, and the mean of each layer.

    The shade is two standard errors over prompts around each layer's mean, taking heads as one.
    """
    figure, axes = plt.subplots(figsize=(COLUMN, 2.2))
    for i, found in enumerate(analyses):
        values, errors = found.arrays["normalised_entropy"], found.arrays["normalised_entropy_se"].mean(1)
        layers, mean = np.arange(1, len(values) + 1), values.mean(1)
        axes.plot(layers, values, ".", color=colour(found, i), alpha=0.3, markersize=3)
        axes.plot(layers, mean, color=colour(found, i), label=found.title)
        axes.fill_between(layers, mean - 2 * errors, mean + 2 * errors, color=colour(found, i), alpha=0.25, lw=0)
    axes.set(xlabel="layer", ylabel="entropy / log(keys seen)", ylim=(0, 1.02))
    axes.xaxis.get_major_locator().set_params(integer=True)
    figure.legend(loc="outside upper center", ncols=len(analyses))
    return figure


def massive_activations(analyses: Sequence[Analysis]) -> Figure:
    """Magnitudes in the residual stream after each layer: the three largest of a prompt (mean over prompts,
    two standard errors), and the median. Massive ones (Sun et al., 2024) exceed the dotted line."""
    figure, grid = plt.subplots(1, len(analyses), figsize=(max(COLUMN, 2.25 * len(analyses)), 2.2), squeeze=False)
    for i, (axes, found) in enumerate(zip(grid[0], analyses, strict=True)):
        a = found.arrays
        layers = np.arange(1, len(a["largest"]) + 1)
        for rank, alpha in enumerate((1, 0.6, 0.3)):
            label = ("largest", "2nd", "3rd")[rank]
            error = 2 * a["largest_se"][:, rank]
            axes.errorbar(layers, a["largest"][:, rank], error, color=colour(found, i), alpha=alpha, label=label)
        axes.plot(layers, a["median_magnitude"], "--", color="grey", label="median")
        axes.axhline(MASSIVE_MAGNITUDE, color="black", linewidth=0.6, linestyle=":")
        axes.set(yscale="log", xlabel="layer", title=found.title)
        axes.xaxis.get_major_locator().set_params(integer=True)
    grid[0, 0].set_ylabel("magnitude")
    figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=4)
    return figure


def sink_head_maps(found: Analysis, num: int = 4) -> Figure:
    """Attention of the first prompt in the most sink-like head of each of the `num` layers that have the
    largest first-token shares; weights over their largest, in a map of at most 64 queries and keys."""
    shares = found.arrays["first_token_proportion"].max(1)
    layers = np.argsort(-shares)[:num]
    figure, grid = plt.subplots(1, len(layers), figsize=(PAGE, 0.5 + PAGE / len(layers)), squeeze=False)
    for axes, layer in zip(grid[0], layers, strict=True):
        weights, head = found.arrays["sink_map"][layer], found.arrays["sink_map_head"][layer]
        length = int((weights.sum(1) > 0).sum())
        axes.imshow(weights[:length, :length] / weights.max(), vmin=0, vmax=1, cmap="magma_r")
        axes.set_title(f"layer {layer + 1}, head {head + 1}: {shares[layer]:.2f}")
        axes.set_xlabel("key")
        axes.spines[["top", "right"]].set_visible(True)
    grid[0, 0].set_ylabel("query")
    figure.suptitle(found.title, fontsize=8)
    return figure
