"""The figures of the value-softmax model: functions of arrays and trajectories that return a Figure.

A coordinate has one colour in all panels. `src.analysis.figures` has the style, the widths and `save`.
"""

import logging
import textwrap

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.special import softmax

from src.analysis.figures import COLUMN, PAGE
from src.value_softmax import theory
from src.value_softmax.flow import Orbit
from src.value_softmax.trajectory import Trajectory, entropy

logging.getLogger("fontTools").setLevel(logging.ERROR)  # it minds the date in the font of mathematics

POINTS = 400  # drawn of each line: more are not seen, and make a PDF heavy


def colours(n: int) -> np.ndarray:
    """One colour for each of n coordinates (n, 4)."""
    if n <= 10:
        return plt.colormaps["tab10"](np.arange(n))
    if n <= 20:
        return plt.colormaps["tab20"](np.arange(n))
    return plt.colormaps["turbo"](np.linspace(0.05, 0.95, n))


def evolution(trajectory: Trajectory) -> Figure:
    """Figure 2: weights σ(a) and u = Vᵀβ of each coordinate over the steps of descent."""
    figure, axes = plt.subplots(1, 2, figsize=(PAGE, 2.0))
    _coordinates(axes[0], trajectory.steps, trajectory.s)
    _coordinates(axes[1], trajectory.steps, trajectory.u)
    for ax, label in zip(axes, (r"weights $\sigma(a)$", r"$u = V^\top\beta$"), strict=True):
        ax.set(xlabel="step", ylabel=label)
    labels = [f"$i$ = {i}" for i in range(trajectory.s.shape[1])]
    figure.legend(axes[1].lines, labels, loc="outside right center")
    return figure


def comparison(trajectories: dict[str, Trajectory]) -> Figure:
    """Weights α(a) under each of six normalisations, by name, and their losses in one panel.

    Weights that stay between 0 and 1 share one y-axis; those of a sum of either sign may not, and have their own.
    """
    names = list(trajectories)
    figure, axes = plt.subplot_mosaic([[*names[:3], "loss"], [*names[3:], "loss"]], figsize=(PAGE, 3.1))
    widths = np.linspace(3, 0.8, len(names))  # lines that coincide show as nested
    axes["loss"].plot([], [], " ", label="loss under")  # heads the legend: its colours are not the coordinates'
    for name, colour, width in zip(names, plt.colormaps["Dark2"](range(len(names))), widths, strict=True):
        trajectory, ax = trajectories[name], axes[name]
        _coordinates(ax, trajectory.steps, trajectory.s)
        ax.set(title=name)
        _line(axes["loss"], trajectory.steps, trajectory.loss, color=colour, linewidth=width, label=name)
    for name in names[:3]:
        axes[name].sharex(axes[names[3]])
        axes[name].tick_params(labelbottom=False)
    shares = [name for name in names if trajectories[name].s.min() >= 0 and trajectories[name].s.max() <= 1]
    top = max((trajectories[name].s.max() for name in shares), default=1)
    for name in shares:
        axes[name].set(ylim=(0, 1.05 * top))
    for name in names[3:]:
        axes[name].set(xlabel="step")
    for name in (names[0], names[3]):
        axes[name].set(ylabel=r"weights $\alpha(a)$")
    axes["loss"].set(title="loss", xlabel="step", xscale="log", yscale="log")
    figure.legend(*axes["loss"].get_legend_handles_labels(), loc="outside lower right", ncols=len(names) + 1)
    return figure


def massive_activations(trajectories: dict[int, Trajectory]) -> Figure:
    """The tied model by dimension D: softmax scores, loss, norm of U's column at the largest score."""
    sizes = list(trajectories)
    figure, axes = plt.subplot_mosaic(
        [sizes, ["loss"] * 2 + ["norm"] * 2], figsize=(PAGE, 3.3), gridspec_kw={"height_ratios": [1, 1.1]}
    )
    for D, colour in zip(sizes, plt.colormaps["viridis"](np.linspace(0, 0.85, len(sizes))), strict=True):
        trajectory = trajectories[D]
        _coordinates(axes[D], trajectory.steps, trajectory.s)
        axes[D].set(title=f"D = {D}", xlabel="step", ylim=(0, 1.02))
        winner = trajectory.s[-1].argmax()
        norm = np.linalg.norm(trajectory.V[:, :, winner], axis=1)
        _line(axes["loss"], trajectory.steps, trajectory.loss, color=colour, label=f"D = {D}")
        _line(axes["norm"], trajectory.steps, norm, color=colour, label=f"D = {D}")
    axes[sizes[0]].set(ylabel=r"weights $\sigma(Ua)$")
    axes["loss"].set(xlabel="step", xscale="log", yscale="log", ylabel="loss")
    axes["norm"].set(xlabel="step", xscale="log", ylabel=r"$\|U_{:m}\|$, $m$ the winner")
    axes["loss"].legend()
    return figure


def condition_numbers(trajectories: dict[int, Trajectory]) -> Figure:
    """Figure 12: scores a and weights σ(a) of the regression, a column for each condition number κ."""
    figure, axes = plt.subplots(2, len(trajectories), figsize=(PAGE, 3.0), sharex=True, sharey="row")
    for (top, bottom), (kappa, trajectory) in zip(axes.T, trajectories.items(), strict=True):
        _coordinates(top, trajectory.steps, trajectory.a)
        _coordinates(bottom, trajectory.steps, trajectory.s)
        top.set(title=rf"$\kappa$ = {kappa}")
        bottom.set(xlabel="step", xlim=(1e3, trajectory.steps[-1]), xticks=[1e3, 1e4, 1e5])
    axes[0, 0].set(ylabel="scores $a$")
    axes[1, 0].set(ylabel=r"weights $\sigma(a)$")
    return figure


def condition_numbers_small(trajectories: dict[int, Trajectory]) -> Figure:
    """Figure 3: scores a at the smallest and the largest condition number."""
    ends = sorted(trajectories)[:: len(trajectories) - 1]
    figure, axes = plt.subplots(1, 2, figsize=(COLUMN, 1.6), sharey=True)
    for ax, kappa in zip(axes, ends, strict=True):
        steps = trajectories[kappa].steps
        _coordinates(ax, steps, trajectories[kappa].a)
        ax.set(title=rf"$\kappa$ = {kappa}", xlabel="step", xlim=(1e3, steps[-1]), xticks=[1e3, 1e4, 1e5])
    axes[0].set(ylabel="scores $a$")
    return figure


def kl(trajectory: Trajectory) -> Figure:
    """Cross-entropy: weights of the scores, predicted classes against p*, and the divergence left."""
    figure, axes = plt.subplots(1, 3, figsize=(PAGE, 1.9))
    target = trajectory.model.target
    _coordinates(axes[0], trajectory.steps, trajectory.s)
    _coordinates(axes[1], trajectory.steps, softmax(trajectory.beta_hat, axis=-1))
    for p, colour in zip(target, colours(target.size), strict=True):
        axes[1].axhline(p, color=colour, linestyle=":", linewidth=0.8)
    _line(axes[2], trajectory.steps, trajectory.loss - entropy(target), color="black")
    labels = (
        r"weights $\sigma(a)$",
        r"softmax$(\hat\beta)$, dotted $p^*$",
        r"KL$(p^* \,\|\, $softmax$(\hat\beta))$",
    )
    for ax, label in zip(axes, labels, strict=True):
        ax.set(xlabel="step", ylabel=label)
    axes[2].set(xscale="log", yscale="log", ylim=(1e-15, None))  # below is rounding
    return figure


def descent_and_flow(descent: Trajectory, flow: Trajectory) -> Figure:
    """Weights over time: dots for descent, at time step × learning rate, lines for the flow."""
    figure, ax = plt.subplots(figsize=(COLUMN, 2.1))
    _coordinates(ax, flow.t, flow.s)
    dots = _thin(descent.t, 25)
    for s, colour in zip(descent.s[dots].T, colours(descent.s.shape[1]), strict=True):
        ax.plot(descent.t[dots], s, "o", color=colour, markersize=2.2)
    ax.plot([], [], "-", color="gray", label="flow")
    ax.plot([], [], "o", color="gray", markersize=2.2, label="descent")
    ax.set(xlabel="time $t$", ylabel=r"weights $\sigma(a)$")
    ax.legend(loc="center left")
    return figure


def entropies(trajectories: dict[str, Trajectory]) -> Figure:
    """Entropy of the weights over time, as a share of its maximum log n, by name of the run."""
    figure, ax = plt.subplots(figsize=(COLUMN, 2.2))
    for name, trajectory in trajectories.items():
        share = entropy(trajectory.s) / np.log(trajectory.s.shape[-1])
        _line(ax, trajectory.t, share, label=name)
    ax.set(
        xlabel="time $t$",
        ylabel=r"entropy of $\sigma(a)$ / $\log n$",
        xscale="log",
        xlim=(1, None),
        ylim=(0, 1.03),
    )
    ax.legend(loc="upper right", bbox_to_anchor=(1, 0.96))
    return figure


def ratio_bound(orbit: Orbit, log_t: np.ndarray) -> Figure:
    """Theorem 3.3b over log t (R): the ratios s_j/s_0 to the winner, their bound, and 2/(n τ²)."""
    figure, ax = plt.subplots(figsize=(COLUMN, 2.2))
    truth, bound = theory.ratio_bound(orbit)
    x, n = log_t / np.log(10), orbit.u.shape[1]
    losers = np.argsort(-orbit.u[0])[1:]
    for ratio, colour in zip(truth.T, colours(n)[losers], strict=True):
        ax.plot(x, ratio, color=colour, linewidth=0.9)
    ax.plot([], [], color="gray", label="$s_j/s_0$")
    ax.plot(x, bound, color="black", linestyle="--", label="bound of Theorem 3.3b")
    late = x > 5
    ax.plot(x[late], 2 / (n * orbit.tau[late] ** 2), color="black", linestyle=":", label=r"$2/(n\tau^2)$")
    ax.set(xlabel=r"$\log_{10} t$", ylabel="ratio to the largest weight", yscale="log")
    ax.legend(loc="upper right", bbox_to_anchor=(1, 0.92))
    return figure


def attention_sink(trajectories: dict[str, Trajectory]) -> Figure:
    """Attention matrices over time, a row of panels for each start, by name; queries down, keys across.

    The trajectories hold the records to draw, at equal times, and no others.
    """
    rows, columns = len(trajectories), len(next(iter(trajectories.values())).t)
    figure, axes = plt.subplots(rows, columns, figsize=(PAGE, 0.4 + 1.25 * rows), squeeze=False)
    for line, (name, trajectory) in zip(axes, trajectories.items(), strict=True):
        for ax, weights in zip(line, trajectory.s, strict=True):
            image = ax.imshow(weights, vmin=0, vmax=1, cmap="viridis")
            ax.set(xticks=[], yticks=[])
        line[0].set(ylabel=f"{textwrap.fill(name, 16)}\nquery")
    for top, bottom, t in zip(axes[0], axes[-1], trajectory.t, strict=True):
        top.set(title=f"$t = 10^{{{np.log10(t):.3g}}}$" if t else "$t = 0$")
        bottom.set(xlabel="key")
    figure.colorbar(image, ax=axes, label="weight", fraction=0.03, pad=0.01)
    return figure


def _thin(x: np.ndarray, points: int = POINTS) -> np.ndarray:
    """Indices of about `points` entries of increasing x, evenly spaced in log x where there are so many."""
    positive = np.flatnonzero(x > 0)
    wanted = np.geomspace(x[positive[0]], x[-1], points)
    return np.unique(np.searchsorted(x, wanted * (1 - 1e-12)))


def _line(ax: Axes, x: np.ndarray, y: np.ndarray, **style) -> None:
    kept = _thin(x)
    ax.plot(x[kept], y[kept], **style)


def _coordinates(ax: Axes, x: np.ndarray, y: np.ndarray) -> None:
    """Lines of y (R, n) over log x (R), in the coordinates' colours."""
    for values, colour in zip(y.T, colours(y.shape[1]), strict=True):
        _line(ax, x, values, color=colour, linewidth=1.0)
    ax.set(xscale="log")
