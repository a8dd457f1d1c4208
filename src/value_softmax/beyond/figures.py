"""The figures of what goes beyond the paper: functions of orbits and trajectories that return a Figure."""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from scipy.special import stdtrit

from src.analysis.figures import COLUMN, PAGE
from src.value_softmax.beyond import entmax, outlets
from src.value_softmax.bridge import won_by
from src.value_softmax.figures import colours
from src.value_softmax.flow import Orbit
from src.value_softmax.trajectory import Trajectory


def losers(runs: dict[float, Orbit | entmax.Losers]) -> Figure:
    """The runner-up's weight against its gap Δ and against τ, a line for each α; dotted the power laws' slopes."""
    figure, axes = plt.subplots(1, 2, figsize=(PAGE, 2.7), sharey=True)
    for (alpha, run), colour in zip(
        runs.items(), plt.colormaps["viridis"](np.linspace(0, 0.9, len(runs))), strict=True
    ):
        order = np.argsort(-run.u[0])[:2]
        gap, y = -np.diff(run.u[:, order])[:, 0], run.s[:, order[1]]
        for ax, x in zip(axes, (gap, run.tau), strict=True):
            ax.plot(x[y > 0], y[y > 0], color=colour, label=rf"$\alpha$ = {alpha:g}")
            if alpha > entmax.CRITICAL and (y == 0).any():  # where it is 0 from then on
                ax.plot(x[y > 0][-1], 1.3e-14, "v", color=colour, markersize=4, clip_on=False)
        law = (gap > 30) & (y > 0) if alpha < entmax.CRITICAL else np.zeros(len(gap), dtype=bool)
        if law.any():
            end = np.flatnonzero(law)[-1]
            slope = (gap[law] / gap[end]) ** -entmax.tail_exponent(alpha)
            axes[0].plot(gap[law], 0.3 * y[end] * slope, ":", color=colour, linewidth=1)
    axes[0].set(xlabel=r"gap $\Delta = u_{winner} - u_{runner-up}$", ylabel="runner-up's weight")
    axes[1].set(xlabel=r"clock $\tau$")
    for ax in axes:
        ax.set(xscale="log", yscale="log", ylim=(1e-14, 1))
    axes[0].plot([], [], ":", color="gray", label=r"slope $-2/(3-2\alpha)$")
    figure.suptitle(
        r"$\alpha$-entmax: a power of $\Delta$ for $\alpha < 3/2$, a Gaussian there, then 0 from a finite $\tau$ (▾)",
        fontsize=8,
    )
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center")
    return figure


def winners(runs: dict[str, Trajectory]) -> Figure:
    """Weights, above, and gaps of u to the score of the largest u(0), below, from one start, a column by optimiser.

    Scores have the colours of their order by u(0), the largest in black.
    """
    figure, axes = plt.subplots(2, len(runs), figsize=(PAGE, 3.1), sharey="row", sharex="col")
    for (top, bottom), (name, run) in zip(axes.T, runs.items(), strict=True):
        order = np.argsort(-run.u[0])
        shades = np.vstack(([[0, 0, 0, 1]], colours(len(order))[: len(order) - 1]))
        for place, (score, colour) in enumerate(zip(order, shades, strict=True)):
            top.plot(run.steps, run.s[:, score], color=colour, label=f"{place + 1}")
            bottom.plot(run.steps, run.u[:, order[0]] - run.u[:, score], color=colour)
        won = int(np.flatnonzero(order == run.s[-1].argmax())[0]) + 1
        top.set(title=f"{name}:\nnumber {won} of {len(order)} wins")
        bottom.set(xlabel="step")
    axes[0, 0].set(ylabel="weights")
    axes[1, 0].set(ylabel=r"$u_1 - u_i$")
    axes[1, 0].set_yscale("symlog", linthresh=0.1)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside right center", title="by $u(0)$")
    return figure


def winner_map(shares: np.ndarray, rates, betas2, collapse: dict[float, tuple]) -> Figure:
    """Left: `shares` (rates, betas2) of starts that argmax u(0) wins under Adam. Right: the same against η/(1-β₁).

    `collapse` has, by β₁, the rates and the shares at β₂ = 0.999.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(PAGE, 2.6))
    image = left.imshow(shares.T, vmin=0, vmax=1, cmap="RdYlBu", origin="lower", aspect="auto")
    left.set_xticks(range(len(rates)), [f"{rate:g}" for rate in rates])
    left.set_yticks(range(len(betas2)), [f"{beta:g}" for beta in betas2])
    for (i, j), share in np.ndenumerate(shares):
        ink = "black" if 0.1 < share < 0.9 else "white"
        left.text(i, j, f"{100 * share:.0f}", ha="center", va="center", fontsize=6, color=ink)
    left.set(
        xlabel=r"learning rate $\eta$",
        ylabel=r"$\beta_2$",
        title="% of starts that the\nlargest $u(0)$ wins under Adam",
    )
    figure.colorbar(image, ax=left, fraction=0.05, pad=0.02)
    shades = plt.colormaps["viridis"](np.linspace(0, 0.85, len(collapse)))
    for (beta1, (eta, share)), colour in zip(collapse.items(), shades, strict=True):
        right.plot(
            np.asarray(eta) / (1 - beta1), share, "o-", color=colour, markersize=3, label=rf"$\beta_1$ = {beta1:g}"
        )
    right.set(xscale="log", ylim=(-0.03, 1.03), xlabel=r"$\eta\,/\,(1-\beta_1)$", ylabel="share of starts")
    right.set(title="the same where $\\beta_1$ remembers\nlonger than attention takes")
    right.legend()
    return figure


def outlet_shares(runs: dict[str, Orbit]) -> Figure:
    """The outlet's share over τ, by name of the start; dotted what it goes to."""
    figure, ax = plt.subplots(figsize=(COLUMN + 1, 2.5))
    for index, (name, run) in enumerate(runs.items()):
        later = run.tau > 0
        share = np.exp(outlets.log_shares(run)[0])
        ax.plot(run.tau[later], share[later], color=f"C{index}", label=name)
        late = later & (run.tau > 30 * max(1, outlets.lifetime(run) if np.isfinite(outlets.lifetime(run)) else 1))
        law = share / outlets.closing_ratio(run) if not (run.tau == 0).any() else None
        if law is not None:
            ax.plot(run.tau[late], law[late], ":", color=f"C{index}", linewidth=1)
    ax.plot([], [], ":", color="gray", label=r"$2/(\|\beta\|^2\tau^2)$, sink: $/(n+1)$")
    ax.set(xscale="log", yscale="log", xlabel=r"clock $\tau$", ylabel="outlet's share $s_0$")
    ax.set(title="An outlet closes; from $\\bar{u} < 0$\nonly after exponentially long")
    ax.legend(loc="lower left")
    return figure


def sparsemax(run: entmax.Losers, exact: np.ndarray, one_hot: float) -> Figure:
    """Weights over τ: the solver's as dots, the closed form `exact` (R, n) as lines, one-hot where it says."""
    figure, ax = plt.subplots(figsize=(COLUMN + 0.6, 2.3))
    for score, colour in enumerate(colours(run.u.shape[1])):
        ax.plot(run.tau, exact[:, score], color=colour)
        ax.plot(run.tau[::12], run.s[::12, score], "o", color=colour, markersize=2.5)
    ax.axvline(one_hot, color="gray", linestyle=":", linewidth=0.8)
    ax.text(one_hot, 0.42, r"one-hot from $\tau^*$", fontsize=7, ha="right", va="bottom", rotation=90)
    ax.set(xlabel=r"clock $\tau$", ylabel="weights")
    ax.set(
        title="sparsemax is solved (lines; the flow: dots),\n"
        + r"$\tau^* = \mathrm{asinh}(\|\beta\|/\delta)\,/\,\|\beta\|$"
    )
    return figure


RUNGS = {"transformer": "black", "linearised": "C0", "model": "C1"}


def bridge(followed: dict[str, dict[str, np.ndarray]]) -> Figure:
    """The model's prediction and the transformer, by optimiser, from one start (see `bridge.load`).

    Above, the entropy of the four rows of attention over steps: means over seeds, bands of all seeds. Below, the shares
    of rows that argmax u(0) wins, and that have the transformer's winner: means over seeds, Student's 95 % intervals.
    """
    names = list(followed)
    figure, axes = plt.subplot_mosaic(
        [[name for name in names for _ in range(2)], ["largest"] * len(names) + ["same"] * len(names)],
        figsize=(PAGE, 3.6),
    )
    for name in names:
        _entropies(axes[name], followed[name])
        axes[name].set_title(name.replace(", ", "\n"), fontsize=7)
        axes[name].set(ylim=(0, 1.03), xscale="log", xlabel="step")
        if name != names[0]:
            axes[name].set(yticklabels=[])
    axes[names[0]].set(ylabel="entropy / log 11")
    largest = {rung: [won_by(run, rung, run["u"].argmax(-1)) for run in followed.values()] for rung in RUNGS}
    same = {
        rung: [won_by(run, rung, run["transformer/winner"]) for run in followed.values()]
        for rung in ("linearised", "model")
    }
    _bars(axes["largest"], largest, names)
    _bars(axes["same"], same, names)
    axes["largest"].set(ylabel="share of rows", title="won by the largest $u(0)$ (dotted: chance)")
    axes["same"].set(title="with the transformer's winner")
    won, met = ({rung: f"{np.mean(x):.0%}" for rung, x in shares.items()} for shares in (largest, same))
    figure.suptitle(
        f"The largest $u(0)$ wins {won['transformer']} of the transformer's rows, {won['model']} of the model's.\n"
        f"The model has the transformer's winner in {met['model']} of rows, the linearised one in {met['linearised']}.",
        fontsize=8,
    )
    figure.legend(*axes["largest"].get_legend_handles_labels(), loc="outside lower center", ncols=len(RUNGS))
    return figure


def _entropies(ax, run):
    """Means over seeds and labels, (records, S, labels) each rung, with the seeds' range."""
    for rung, colour in RUNGS.items():
        of_seeds = run[f"{rung}/entropy"].mean(2)
        steps = run["steps"] + 1
        ax.plot(steps, of_seeds.mean(1), color=colour)
        ax.fill_between(steps, of_seeds.min(1), of_seeds.max(1), color=colour, alpha=0.15, linewidth=0)


def _bars(ax, shares, names):
    """Means and intervals of `shares` (S) by rung, a group of bars for each name."""
    width = 0.8 / len(shares)
    for index, (rung, of_names) in enumerate(shares.items()):
        x = np.arange(len(names)) + (index - (len(shares) - 1) / 2) * width
        means = [values.mean() for values in of_names]
        errors = [stdtrit(len(values) - 1, 0.975) * values.std(ddof=1) / len(values) ** 0.5 for values in of_names]
        ax.bar(x, means, width, yerr=errors, color=RUNGS[rung], label=rung, error_kw={"linewidth": 0.7})
    ax.axhline(1 / 11, color="gray", linestyle=":", linewidth=0.8)
    ax.set(ylim=(0, 1))
    ax.set_xticks(range(len(names)), [name.replace(", ", "\n") for name in names], fontsize=6)
