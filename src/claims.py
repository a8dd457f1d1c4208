"""The paper's claims about trained transformers, each with the number measured in the committed runs.

uv run python -m src.claims                     # the README's tables
uv run python -m src.claims logs/runs.db        # of other runs
"""

import sys
from collections.abc import Iterable

import numpy as np
import pandas as pd

from src import scores
from src.attention import ATTENTION
from src.figures import INDUCTION_SETTING, INDUCTION_SETTINGS, panel_title
from src.runs import COMMITTED, HISTORY, LogError, load_runs
from src.scores import by_type, mean_interval, select


def induction_main(runs: pd.DataFrame) -> pd.DataFrame:
    """The main setting of Section 4.1 at the learning rate and number of heads that all types have."""
    setting = {"aux_loss_weight": 0.2, "shift_query_token": True, "positional_type": "add"}
    return select(runs, task="induction", lr=1e-3, num_heads=4, **setting)


def classification_main(runs: pd.DataFrame) -> pd.DataFrame:
    """One layer, one head, as in Figure 6."""
    return select(runs, task="classification", num_layers=1, num_heads=1)


def interval(mean: float, low: float, high: float, sign: str = "") -> str:
    """0.80 [0.65, 0.95], or 1.00 where the interval is a point."""
    mean, low, high = (f"{value + 0.0:{sign}.2f}".replace("-", "−") for value in (mean, low, high))
    return mean if low == high else f"{mean} [{low}, {high}]"


def markdown(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    header = list(header)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [header, ["---"] * len(header), *rows])


def kernel_table(title: str, columns: dict[str, pd.DataFrame]) -> str:
    """Results `by_type`, each column by its name, as a Markdown table: a row for each kernel, two columns for
    each result, normalised and not."""
    kernels = [label for label in dict.fromkeys(kind.label for kind in ATTENTION.values()) if label != "uniform"]
    header = [title] + [f"{name}, {how}" for name in columns for how in ("normalised", "not")]
    rows = {label: [label] for label in kernels}
    for table in columns.values():
        for label in kernels:
            for normalised in (True, False):
                names = [n for n, k in ATTENTION.items() if (k.label, k.normalised) == (label, normalised)]
                cells = [interval(*table.loc[n, ["mean", "low", "high"]]) for n in names if n in table.index]
                rows[label].append(*cells or [""])
    return markdown(header, rows.values())


def sink_table(runs: pd.DataFrame) -> str:
    main = induction_main(runs)
    shares = by_type(main, scores.sink_shares(main))
    magnitudes = by_type(main, scores.sink_shares(main, score="mag_attn_bos_global"))
    return kernel_table("second-layer heads that are sinks", {"published score": shares, "share of abs(w)": magnitudes})


def settings_table(runs: pd.DataFrame) -> str:
    """Share of sinks in each of the 12 settings, of types that were trained in several: lr 1e-3, 4 heads,
    seed 0. A dash: the run does not solve the task."""
    group = select(runs, task="induction", lr=1e-3, num_heads=4, seed=0)
    group = group.assign(share=scores.sink_shares(group)).set_index([*INDUCTION_SETTING, "attention_type"])["share"]
    counts = group.index.get_level_values("attention_type").value_counts()
    names = [name for name in ATTENTION if name != "uniform" and counts.get(name, 0) > 1]
    rows = []
    for setting in INDUCTION_SETTINGS:
        keys = [(*setting.values(), name) for name in names]
        shares = ["" if key not in group.index else f"{group[key]:.2f}".replace("nan", "–") for key in keys]
        rows.append([panel_title(INDUCTION_SETTING, list(setting.values())), *shares])
    return markdown(["seed 0, lr 1e-3, 4 heads", *names], rows)


def sparsity_table(runs: pd.DataFrame) -> str:
    main = classification_main(runs)
    columns = {"sparsity": scores.sparsity_scores(main), "flip rate": scores.flip_rates(main)}
    return kernel_table("1 layer, 1 head", {name: by_type(main, values) for name, values in columns.items()})


def effects_of_normalising_in(runs: pd.DataFrame, values: pd.Series) -> str:
    """For each kernel its value with normalisation less the one without: mean over seeds that have both."""
    table = runs.loc[values.index, ["attention_type", "seed"]].assign(value=values)
    by_seed = table.pivot_table(index="seed", columns="attention_type", values="value")
    parts = []
    for name, kind in ATTENTION.items():
        twins = [other for other, k in ATTENTION.items() if k.label == kind.label and not k.normalised]
        if kind.normalised and twins and {name, *twins} <= set(by_seed):
            difference = (by_seed[name] - by_seed[twins[0]]).dropna().to_numpy()
            parts += [f"{kind.label} {interval(*mean_interval(difference), sign='+')}"] if len(difference) else []
    if not parts:
        raise LogError("no kernel has runs of one seed with normalisation and without")
    return ", ".join(parts)


def entropy_fall(runs: pd.DataFrame, attention_type: str, layer: int) -> str:
    """Mean normalised entropy of a layer's heads at the start and at the end of training."""
    line = scores.curve(runs[runs["attention_type"] == attention_type], "attn_entropy", layer)
    return f"{line['mean'].iloc[0]:.2f} → {interval(*line.iloc[-1])}"


# What was measured of each claim of Section 4, as the README says it; LogError where no run says anything.


def of_types(table: pd.DataFrame, names: Iterable[str]) -> str:
    """Attention types and their means in a table `by_type`: softmax 1.00, …"""
    if missing := [name for name in names if name not in table.index]:
        raise LogError(f"no run of {missing[0]} to measure this by")
    return ", ".join(f"{name} {interval(*table.loc[name].iloc[:3])}" for name in names)


def sinks_by_type(runs: pd.DataFrame) -> str:
    main = induction_main(runs)
    return f"share of heads: {of_types(by_type(main, scores.sink_shares(main)), ('softmax', 'sigmoid_unnorm'))}"


def effects_of_normalising(runs: pd.DataFrame) -> str:
    main = induction_main(runs)
    sinks, attention = (
        effects_of_normalising_in(main, values)
        for values in (scores.sink_shares(main), scores.first_token_shares(main))
    )
    return f"change of the share of sinks: {sinks}; of BOS's mean share of abs(w): {attention}"


def without_auxiliary_loss(runs: pd.DataFrame) -> str:
    group = select(runs, task="induction", aux_loss_weight=0.0, attention_type="softmax")
    heads = group[scores.head_columns(group, "rel_attn_bos_global", layer=1)].to_numpy()
    names = scores.head_columns(group, "attn_entropy", 1, HISTORY)
    entropy = np.array([[values[-1] for values in run] for run in group[names].to_numpy()])
    if not len(group):
        raise LogError("no run of softmax with aux_loss_weight 0 to measure this by")
    return (
        f"{len(group)} runs, {(heads > scores.SINK).sum()} of {heads.size} heads are sinks; sink scores "
        f"{heads.min():.2f} to {heads.max():.2f}, entropy at the end {entropy.min():.2f} to {entropy.max():.2f}"
    )


def learned(runs: pd.DataFrame) -> str:
    parts = []
    for task, accuracy in (("induction", "eval/acc_induction"), ("classification", "eval/acc")):
        group = select(runs, task=task)
        scores.require_columns(group, [accuracy, "lr"])
        solved = group.loc[group["attention_type"] != "uniform", accuracy] > scores.SOLVED
        counts = [f"lr {lr:g} {part.sum():,} of {len(part):,}" for lr, part in solved.groupby(group["lr"])]
        parts.append(f"{task}: {', '.join(counts)}")
    return f"runs with accuracy above {scores.SOLVED}, {'; '.join(parts)}"


def sparsity_without_need(runs: pd.DataFrame) -> str:
    main = classification_main(runs)
    shown = of_types(by_type(main, scores.sparsity_scores(main)), ("softmax", "uniform"))
    uniform = main.loc[main["attention_type"] == "uniform", "eval/acc"]
    return f"sparsity score: {shown}, whose accuracy is {uniform.mean():.3f} all the same"


def flips_by_size(runs: pd.DataFrame) -> str:
    group = select(runs, task="classification", vocab_size=41, lr=1e-3, attention_type="softmax")
    parts = []
    for (layers, heads), part in group.groupby(["num_layers", "num_heads"]):
        rate = by_type(part, scores.flip_rates(part)).iloc[0]
        parts.append(f"{layers} × {heads} {interval(*rate.iloc[:3])} ({rate['runs']:.0f} runs)")
    return f"flip rate of softmax at vocabulary 41, lr 1e-3, layers × heads: {', '.join(parts)}"


def entropies(runs: pd.DataFrame) -> str:
    second, cls = induction_main(runs), select(classification_main(runs), vocab_size=41, lr=1e-3)
    parts = [
        f"{where} {', '.join(f'{name} {entropy_fall(group, name, layer)}' for name in ('softmax', 'sigmoid_unnorm'))}"
        for where, group, layer in (("second layer, induction:", second, 1), ("CLS row:", cls, 0))
    ]
    return f"entropy at the start → end of training; {'; '.join(parts)}"


MEASURED = {
    "a": sinks_by_type,
    "b": effects_of_normalising,
    "c": learned,
    "d": sparsity_without_need,
    "e": flips_by_size,
    "f": entropies,
    "aux 0": without_auxiliary_loss,
}


def main(arguments: list[str]) -> int:
    if len(arguments) > 1 or "--help" in arguments:
        print("usage: python -m src.claims [SOURCE]", file=sys.stderr)
        return 2
    try:
        runs = load_runs(*arguments or [COMMITTED], history=True)
        scores.require_columns(runs, ["task", "state", "attention_type", "seed"])
    except LogError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    tables = {"sinks": sink_table, "settings": settings_table, "sparsity": sparsity_table}
    for name, measure in (tables | MEASURED).items():
        try:
            print(f"({name})", measure(runs), sep="\n\n" if name in tables else " ", end="\n\n")
        except LogError as error:
            print(f"({name}) {error}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
