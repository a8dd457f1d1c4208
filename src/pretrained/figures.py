"""The figures of pretrained models: analyses in, a matplotlib Figure out."""

import re
from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from src.analysis.figures import COLUMN, KERNEL_COLOURS, PAGE, save
from src.pretrained.interventions import INTERVENTIONS
from src.pretrained.rates import SINK_THRESHOLD, sink_rates
from src.pretrained.results import Analysis
from src.pretrained.statistics import MASSIVE_MAGNITUDE, MASSIVE_RATIO

OTHERS = ["#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#666666"]
BINS = np.linspace(0, 1, 21)
SINK, MASSIVE = "#0072B2", "#D55E00"  # the two curves of one figure


def colour(found: Analysis, place: int) -> str:
    return KERNEL_COLOURS.get(found.title, OTHERS[place % len(OTHERS)])


def legend(figure: Figure, handles: Sequence, labels: Sequence[str], width: float) -> None:
    """Above the axes, in as many columns as fit into `width` inches."""
    longest = max(map(len, labels), default=1)
    columns = int(width / (0.45 + 0.058 * longest))
    figure.legend(handles, labels, loc="outside upper center", ncols=max(1, min(columns, len(labels))))


def whole_numbers(axes: Axes) -> None:
    axes.xaxis.get_major_locator().set_params(integer=True)


def layers_of(found: Analysis) -> np.ndarray:
    return np.arange(1, len(found.heads) + 1)  # counted from 1, as in the other figures


def sink_scores(analyses: Sequence[Analysis]) -> Figure:
    """Figure 7: histograms of the heads' sparsity score, in 20 bins that all models share, as shares of the heads.

    Left the mean largest weight, as published; right its mean share of the row's sum, as the text defines it.
    The two are one for softmax.
    """
    figure, grid = plt.subplots(1, 2, figsize=(PAGE, 2.4), sharey=True)
    for axes, name, label in zip(
        grid,
        ("max_proportion", "max_share"),
        ("mean largest weight (as published)", "mean largest weight / row's sum"),
        strict=True,
    ):
        for i, found in enumerate(analyses):
            scores = found.arrays[name][found.heads].ravel()
            shares = np.full(len(scores), 1 / len(scores))
            axes.hist(scores, BINS, weights=shares, alpha=0.5, color=colour(found, i), label=found.title)
        axes.set(xlim=(0, 1), xlabel=label)
    grid[0].set_ylabel("share of heads")
    legend(figure, *grid[0].get_legend_handles_labels(), PAGE)
    return figure


def sinks_and_massive(found: Analysis) -> Figure:
    """Sinks and massive activations by layer: heads' mean α₁ in each layer (with two standard errors over texts, and
    every head as a dot), and above it the largest activation of a text, with the line that massive ones exceed."""
    a, layers = found.arrays, layers_of(found)
    figure, (upper, lower) = plt.subplots(2, 1, figsize=(COLUMN, 3.4), sharex=True)
    limit = np.maximum(MASSIVE_MAGNITUDE, MASSIVE_RATIO * a["median_magnitude"])
    largest, error = a["largest"][:, 0], 2 * a["largest_se"][:, 0]
    upper.errorbar(layers, largest, error, color=MASSIVE, label="largest of a text")
    upper.plot(layers, a["median_magnitude"], "--", color="grey", label="median")
    upper.plot(layers, limit, ":", color="black", linewidth=0.8, label="massive above")
    upper.set(yscale="log", ylabel="activation")
    mean, errors = layer_alpha(found)
    lower.plot(layers, a["alpha_1"], ".", color=SINK, alpha=0.25, markersize=3)
    lower.plot(layers, mean, color=SINK)
    lower.fill_between(layers, mean - 2 * errors, mean + 2 * errors, color=SINK, alpha=0.25, lw=0)
    lower.axhline(SINK_THRESHOLD, color="black", linewidth=0.8, linestyle=":")
    lower.set(ylim=(0, 1), xlabel="layer", ylabel=r"first token's share, $\alpha_1$")
    lower.text(layers[0], SINK_THRESHOLD + 0.02, "sink above", fontsize=6)
    whole_numbers(lower)
    upper.set_title(found.title)
    legend(figure, *upper.get_legend_handles_labels(), COLUMN + 1)
    return figure


def layer_alpha(found: Analysis) -> tuple[np.ndarray, np.ndarray]:
    """Mean α₁ of each layer's heads (L,), and its standard error over texts."""
    texts = found.arrays["alpha_1_texts"].astype(float).mean(2)  # (L, P)
    texts = texts[:, ~np.isnan(texts[found.heads]).all(0)]
    with np.errstate(invalid="ignore", divide="ignore"):
        spread = np.sqrt(((texts - texts.mean(1, keepdims=True)) ** 2).sum(1) / (texts.shape[1] - 1))
        return texts.mean(1), spread / np.sqrt(texts.shape[1])


def sink_profile(analyses: Sequence[Analysis]) -> Figure:
    """The share of heads whose mean α₁ exceeds τ, for all τ, with two standard errors over texts."""
    figure, axes = plt.subplots(figsize=(COLUMN, 2.4))
    levels = np.linspace(0, 1, 101)
    for i, found in enumerate(analyses):
        value, error = sink_rates(found.arrays, levels)
        axes.plot(levels, value, color=colour(found, i), label=found.title)
        axes.fill_between(levels, value - 2 * error, value + 2 * error, color=colour(found, i), alpha=0.25, lw=0)
    axes.axvline(SINK_THRESHOLD, color="black", linewidth=0.8, linestyle=":")
    axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel=r"threshold $\tau$", ylabel=r"share of heads with $\alpha_1 > \tau$")
    legend(figure, *axes.get_legend_handles_labels(), COLUMN)
    return figure


def position_profile(analyses: Sequence[Analysis]) -> Figure:
    """The share α_k of each of the first key positions over queries that see it: mean over heads, and two standard
    errors over texts, taking heads as one."""
    figure, axes = plt.subplots(figsize=(COLUMN, 2.4))
    for i, found in enumerate(analyses):
        profile = found.arrays["profile"][found.heads].mean((0, 1))
        errors = found.arrays["profile_se"][found.heads].mean((0, 1))
        keys = np.arange(1, len(profile) + 1)
        low, high = np.maximum(profile - 2 * errors, 1e-4), profile + 2 * errors
        axes.plot(keys, profile, ".-", color=colour(found, i), markersize=3, label=found.title)
        axes.fill_between(keys, low, high, color=colour(found, i), alpha=0.25, lw=0)
    axes.set(xscale="log", yscale="log", xlabel="key position (1 is the first token)", ylabel=r"mean share $\alpha_k$")
    axes.set_xticks([1, 2, 4, 8, 16, 32, 64], ["1", "2", "4", "8", "16", "32", "64"], minor=False)
    axes.minorticks_off()
    legend(figure, *axes.get_legend_handles_labels(), COLUMN)
    return figure


def token_classes(analyses: Sequence[Analysis]) -> Figure:
    """How attention is shared between the first token, delimiters and other tokens; hollow: if it were uniform."""
    figure, axes = plt.subplots(figsize=(COLUMN, 2.2))
    width = 0.8 / len(analyses)
    for i, found in enumerate(analyses):
        a, x = found.arrays, np.arange(3) + (i - (len(analyses) - 1) / 2) * width
        names = ["first_token_proportion", "delimiter_proportion", "other_proportion"]
        means = [np.nanmean(a[name]) for name in names]
        errors = [2 * np.nanmean(a[f"{name}_se"]) for name in names]
        axes.bar(x, means, 0.9 * width, yerr=errors, capsize=1.5, color=colour(found, i), label=found.title)
        if uniform := found.about.get("uniform_shares"):
            hollow = {"color": "none", "edgecolor": "black", "linewidth": 0.8}
            first = "if uniform" not in axes.get_legend_handles_labels()[1]
            axes.bar(x, list(uniform.values()), 0.9 * width, **hollow, label="if uniform" if first else None)
    axes.set_xticks(range(3), ["first token", "delimiters", "others"])
    axes.set(ylim=(0, 1), ylabel="share of attention")
    legend(figure, *axes.get_legend_handles_labels(), COLUMN)
    return figure


def interventions(found: Analysis) -> Figure:
    """What each intervention costs in loss and does to sinks, with two standard errors over texts; controls hollow.

    The loss on a scale that is linear near 0 and logarithmic beyond, since effects differ by a factor of thousands.
    """
    names = [name for name in INTERVENTIONS if f"{name}/loss_effect" in found.arrays]
    figure, grid = plt.subplots(1, 2, figsize=(PAGE, 0.9 + 0.22 * len(names)), sharey=True)
    places = np.arange(len(names))
    for axes, what, label in zip(
        grid,
        ("loss_effect", "first_share_effect"),
        ("change of the loss (nats a token)", r"change of mean $\alpha_1$"),
        strict=True,
    ):
        for place, name in enumerate(names):
            value, error = (float(found.arrays[f"{name}/{what}{end}"]) for end in ("", "_se"))
            face = "white" if "random" in name else SINK
            axes.barh(place, value, 0.7, xerr=2 * error, capsize=1.5, color=face, edgecolor=SINK)
        axes.axvline(0, color="black", linewidth=0.6)
        axes.set_xlabel(label)
    grid[0].set_xscale("symlog", linthresh=0.1)
    grid[0].set_xticks([-0.1, 0, 0.1, 1, 10], ["−0.1", "0", "0.1", "1", "10"])
    grid[0].set_yticks(places, [INTERVENTIONS[name].label for name in names])
    grid[0].invert_yaxis()
    texts, tokens = found.about["n_samples"], found.about["max_seq_len"]
    figure.suptitle(f"{found.title}: {texts} texts of {tokens} tokens; hollow: controls", fontsize=8)
    return figure


def first_token_map(found: Analysis) -> Figure:
    """Mean share of the first token in the rows of each head, layers × heads."""
    shares = found.arrays["first_token_proportion"]
    layers, heads = shares.shape
    edges = (0.5, heads + 0.5, 0.5, layers + 0.5)
    figure, axes = plt.subplots(figsize=(COLUMN, 0.9 + COLUMN * 0.75 * min(layers / heads, 1.5)))
    picture = axes.imshow(shares, vmin=0, vmax=1, cmap="viridis", aspect="auto", origin="lower", extent=edges)
    axes.set(xlabel="head", ylabel="layer", title=found.title)
    whole_numbers(axes)
    axes.yaxis.get_major_locator().set_params(integer=True)
    figure.colorbar(picture, label="share of the first token")
    return figure


def entropy_by_depth(analyses: Sequence[Analysis]) -> Figure:
    """Entropy over log of the number of keys, by depth: each head, and the mean of each layer.

    The shade is two standard errors over prompts around each layer's mean, taking heads as one.
    """
    figure, axes = plt.subplots(figsize=(COLUMN, 2.4))
    for i, found in enumerate(analyses):
        values, errors = found.arrays["normalised_entropy"], found.arrays["normalised_entropy_se"].mean(1)
        layers, mean = layers_of(found), values.mean(1)
        axes.plot(layers, values, ".", color=colour(found, i), alpha=0.3, markersize=3)
        axes.plot(layers, mean, color=colour(found, i), label=found.title)
        axes.fill_between(layers, mean - 2 * errors, mean + 2 * errors, color=colour(found, i), alpha=0.25, lw=0)
    axes.set(xlabel="layer", ylabel="entropy / log(keys seen)", ylim=(0, 1.02))
    whole_numbers(axes)
    legend(figure, *axes.get_legend_handles_labels(), COLUMN)
    return figure


def massive_activations(analyses: Sequence[Analysis]) -> Figure:
    """Magnitudes in the residual stream after each layer: the three largest of a prompt, and the median; means
    over prompts. Massive ones (Sun et al., 2024) exceed the dotted line: 100, and 1000 times the
    median."""
    width = max(COLUMN, 2.25 * len(analyses))
    figure, grid = plt.subplots(1, len(analyses), figsize=(width, 2.4), squeeze=False)
    for i, (axes, found) in enumerate(zip(grid[0], analyses, strict=True)):
        a, layers = found.arrays, layers_of(found)
        for rank, alpha in enumerate((1, 0.6, 0.3)):
            label = ("largest", "2nd", "3rd")[rank]
            axes.plot(layers, a["largest"][:, rank], color=colour(found, i), alpha=alpha, label=label)
        axes.plot(layers, a["median_magnitude"], "--", color="grey", label="median")
        limit = np.maximum(MASSIVE_MAGNITUDE, MASSIVE_RATIO * a["median_magnitude"])
        axes.plot(layers, limit, color="black", linewidth=0.8, linestyle=":", label="massive above")
        axes.set(yscale="log", xlabel="layer")
        axes.set_title(found.title, fontsize=7)
        whole_numbers(axes)
    grid[0, 0].set_ylabel("magnitude")
    legend(figure, *grid[0, 0].get_legend_handles_labels(), width)
    return figure


def norms_by_layer(analyses: Sequence[Analysis]) -> Figure:
    """By layer the first token against the others: norms of its value, of its key and of its state, 1 is alike; and
    the kurtosis of a token's state, 3 if its entries were normal."""
    figure, grid = plt.subplots(1, 4, figsize=(PAGE, 2.2))
    for i, found in enumerate(analyses):
        a, layers = found.arrays, layers_of(found)
        for axes, name in zip(grid, ("value_norm_ratio", "key_norm_ratio"), strict=False):
            axes.plot(layers, a[name], ".", color=colour(found, i), alpha=0.2, markersize=3)
            axes.errorbar(layers, a[name].mean(1), 2 * a[f"{name}_se"].mean(1), color=colour(found, i))
        grid[2].plot(layers, a["norm_first"] / a["norm_others"], color=colour(found, i), label=found.title)
        grid[3].errorbar(layers, a["kurtosis"], 2 * a["kurtosis_se"], color=colour(found, i))
    names = ["value norm", "key norm", "state norm", "kurtosis of states"]
    for axes, name, level in zip(grid, names, (1, 1, 1, 3), strict=True):
        axes.axhline(level, color="black", linewidth=0.6, linestyle=":")
        axes.set(yscale="log", xlabel="layer", title=name)
        whole_numbers(axes)
    grid[0].set_ylabel("first token / others")
    legend(figure, *grid[2].get_legend_handles_labels(), PAGE)
    return figure


def sink_head_maps(found: Analysis, num: int = 4) -> Figure:
    """Attention of the first prompt in the most sink-like head of each of the `num` layers that have the
    largest first-token shares; weights over their largest, in a map of at most 64 queries and keys."""
    shares = np.where(found.heads, found.arrays["first_token_proportion"].max(1), -1)
    layers = np.argsort(-shares)[: min(num, int(found.heads.sum()))]
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


TOGETHER = {  # of all analyses
    "scores": sink_scores,
    "sink_profile": sink_profile,
    "positions": position_profile,
    "token_classes": token_classes,
    "entropy": entropy_by_depth,
    "massive_activations": massive_activations,
    "norms": norms_by_layer,
}
EACH = {  # of one
    "sinks_and_massive": sinks_and_massive,
    "first_token": first_token_map,
    "sink_heads": sink_head_maps,
}


def file_name(name: str, found: Analysis) -> str:
    """Of a figure of one analysis."""
    title = re.sub("[^A-Za-z0-9.-]+", "_", found.title).strip("_")
    return f"pretrained_{name}_{title}"


def figures_of(analyses: Sequence[Analysis]) -> dict[str, Figure]:
    """Every figure of these analyses, by the name of its file."""
    found = {f"pretrained_{name}": draw(analyses) for name, draw in TOGETHER.items() if analyses}
    for analysis in analyses:
        found |= {file_name(name, analysis): draw(analysis) for name, draw in EACH.items()}
        if "mask_first/loss_effect" in analysis.arrays:
            found[file_name("interventions", analysis)] = interventions(analysis)
    pair = [analysis for analysis in analyses if analysis.title in ("softmax", "sigmoid")]
    return found | ({"sink_scores": sink_scores(pair)} if pair else {})


def draw_all(analyses: Sequence[Analysis], folder: Path) -> list[Path]:
    """Save every figure of these analyses in a folder; the files."""
    paths = []
    for name, figure in figures_of(analyses).items():
        paths += save(figure, name, folder)
        plt.close(figure)
    return paths
