"""The paper's claims about trained transformers, each with the number measured in the committed runs.

uv run python -m src.analysis.claims                     # the README's tables
uv run python -m src.analysis.claims logs/runs.db        # of other runs
"""

import sys
from collections.abc import Iterable

import numpy as np
import pandas as pd

from src.analysis import scores
from src.analysis.figures import INDUCTION_SETTING, INDUCTION_SETTINGS, panel_title
from src.analysis.scores import by_type, mean_interval, of_task, select, usual
from src.model.registry import ATTENTION
from src.runs import COMMITTED, HISTORY, LogError, load_runs


def induction_main(runs: pd.DataFrame) -> pd.DataFrame:
    """The main setting of Section 4.1, at its commonest learning rate and number of heads."""
    setting = {"aux_loss_weight": 0.2, "shift_query_token": True, "positional_type": "add"}
    return usual(select(runs, task="induction", **setting), "lr", "num_heads")


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


def shares_by_setting(runs: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """Mean share of sinks of each attention type (columns) in each of the 12 settings, NaN where no run solves the
    task; and at which learning rate and number of heads: the commonest."""
    group = usual(select(runs, task="induction"), "lr", "num_heads")
    if not len(group):
        raise LogError("no run of induction to measure this by")
    group = group.assign(share=scores.sink_shares(group))
    table = group.pivot_table(index=list(INDUCTION_SETTING), columns="attention_type", values="share", dropna=False)
    return table, f"lr {group['lr'].iloc[0]:g}, {group['num_heads'].iloc[0]} heads"


def settings_table(runs: pd.DataFrame) -> str:
    """Share of sinks in each setting, of each kernel with normalisation / without. A dash: no run solves the task;
    blank: none was trained."""
    shares, where = shares_by_setting(runs)
    group = usual(select(runs, task="induction"), "lr", "num_heads")
    trained = group.groupby([*INDUCTION_SETTING, "attention_type"]).size()
    kernels: dict[str, list[str]] = {}
    for name in ATTENTION:
        if name != "uniform":
            kernels.setdefault(ATTENTION[name].label, []).append(name)  # normalised first

    def cell(key: tuple, name: str) -> str:
        share = shares[name].get(key, np.nan) if name in shares else np.nan
        return ("–" if (*key, name) in trained.index else "") if np.isnan(share) else f"{share:.2f}"

    rows = []
    for setting in INDUCTION_SETTINGS:
        key = tuple(setting.values())
        cells = [" / ".join(filter(None, (cell(key, name) for name in names))) for names in kernels.values()]
        rows.append([panel_title(INDUCTION_SETTING, list(key)), *cells])
    return markdown([where, *kernels], rows)


def effects_by_setting(runs: pd.DataFrame) -> str:
    """In how many settings and kernels the share of sinks rises with normalisation, where both solve the task."""
    shares, where = shares_by_setting(runs)
    twins = [(name, twin_of(name)) for name in shares if twin_of(name) in shares]
    parts = []
    for aux, group in shares.groupby("aux_loss_weight"):
        change = [value for name, twin in twins for value in (group[name] - group[twin]).dropna()]
        higher, lower = sum(value > 0 for value in change), sum(value < 0 for value in change)
        parts.append(f"aux {aux:g} higher in {higher}, equal in {len(change) - higher - lower}, lower in {lower}")
    return f"share of sinks with normalisation, pairs of a kernel and a setting at {where}: {'; '.join(parts)}"


def sparsity_table(runs: pd.DataFrame) -> str:
    main = classification_main(runs)
    columns = {"sparsity": scores.sparsity_scores(main), "flip rate": scores.flip_rates(main)}
    return kernel_table("1 layer, 1 head", {name: by_type(main, values) for name, values in columns.items()})


def twin_of(name: str) -> str | None:
    """The attention type that is this normalised one without its normalisation."""
    kind = ATTENTION[name]
    twins = [other for other, k in ATTENTION.items() if k.label == kind.label and not k.normalised]
    return twins[0] if kind.normalised and twins else None


def effects_of_normalising_in(runs: pd.DataFrame, values: pd.Series) -> str:
    """For each kernel its value with normalisation less the one without: mean over seeds that have both."""
    table = runs.loc[values.index, ["attention_type", "seed"]].assign(value=values)
    by_seed = table.pivot_table(index="seed", columns="attention_type", values="value")
    parts = []
    for name, kind in ATTENTION.items():
        if {name, twin_of(name)} <= set(by_seed):
            difference = (by_seed[name] - by_seed[twin_of(name)]).dropna().to_numpy()
            shown = interval(*mean_interval(difference, bounds=(-1, 1)), sign="+") if len(difference) else ""
            parts += [f"{kind.label} {shown}"] if shown else []
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
    group = usual(select(runs, task="induction", aux_loss_weight=0.0, attention_type="softmax"), "lr", "num_heads")
    heads = group[scores.head_columns(group, "rel_attn_bos_global", layer=1)].to_numpy()
    heads = heads[:, ~np.isnan(heads).all(axis=0)]  # those that runs of this size have
    names = scores.head_columns(group, "attn_entropy", 1, HISTORY)
    entropy = np.array([[values[-1] for values in run if np.ndim(values)] for run in group[names].to_numpy()])
    if not len(group):
        raise LogError("no run of softmax with aux_loss_weight 0 to measure this by")
    return (
        f"{len(group)} runs, {(heads > scores.SINK).sum()} of {heads.size} heads are sinks; sink scores "
        f"{heads.min():.2f} to {heads.max():.2f}, entropy at the end {entropy.min():.2f} to {entropy.max():.2f}"
    )


def learned(runs: pd.DataFrame) -> str:
    """How many runs solve the tasks, and their mean accuracy, by learning rate; of induction, by positions too."""
    parts = []
    for task, accuracy in (("induction", "eval/acc_induction"), ("classification", "eval/acc")):
        group = select(runs, task=task)
        scores.require_columns(group, [accuracy, "lr", "positional_type"])
        group = group[group["attention_type"] != "uniform"]
        kinds = np.where(group["positional_type"] == "no", "without positions", "with positions")
        for kind, part in group.groupby(kinds):
            counts = [f"lr {lr:g} {solved(at_lr, accuracy)}" for lr, at_lr in part.groupby("lr")]
            parts.append(f"{task}{f' {kind}' if task == 'induction' else ''}: {', '.join(counts)}")
    return f"runs with accuracy above {scores.SOLVED} (mean accuracy): {'; '.join(parts)}"


def solved(runs: pd.DataFrame, accuracy: str) -> str:
    mean = interval(*mean_interval(runs[accuracy].to_numpy(), runs["seed"].to_numpy()))
    return f"{(runs[accuracy] > scores.SOLVED).sum():,} of {len(runs):,} ({mean})"


def order_when_polarized(entropies: np.ndarray, orders: np.ndarray) -> str:
    """Both (seeds, steps), as `inspection.entropy_and_order` gives them: how far tokens are in the order of the end
    when attention is half polarized."""
    half = (entropies < 0.5).argmax(1)
    at_half = orders[np.arange(len(half)), half]
    return (
        f"the entropy falls below 0.5 at step {half.min() + 1} to {half.max() + 1}, when "
        f"{interval(*mean_interval(at_half))} of all pairs of tokens are in the order of the end"
    )


def range_of_signed_scores(runs: pd.DataFrame) -> str:
    """Of the signed kernels' second-layer heads in runs of the main setting that solve the task."""
    main = induction_main(runs)
    signed = main["attention_type"].map(lambda name: ATTENTION[name].label in ("linear", "mlp"))
    main = main[signed & (scores.accuracies(main) > scores.SOLVED)]
    published = main[scores.head_columns(main, "rel_attn_bos_global", 1)].to_numpy()
    shares = main[scores.head_columns(main, "mag_attn_bos_global", 1)].to_numpy()
    above = published > scores.SINK
    if not above.any():
        raise LogError("no head of a signed kernel with a sink score above 0.9 to measure this by")
    return (
        f"sink scores from {np.nanmin(published):.0f} to {np.nanmax(published):.0f}; "
        f"{above.sum()} heads above {scores.SINK}, {(published[above] > 1).sum()} of them above 1, "
        f"with shares of abs(w) of at most {shares[above].max():.2f}"
    ).replace("from -", "from −")


def sparsity_without_need(runs: pd.DataFrame) -> str:
    main = classification_main(runs)
    shown = of_types(by_type(main, scores.sparsity_scores(main)), ("softmax", "uniform"))
    uniform = main.loc[main["attention_type"] == "uniform", "eval/acc"]
    return f"sparsity score: {shown}, whose accuracy is {uniform.mean():.3f} all the same"


def flips_by_size(runs: pd.DataFrame) -> str:
    group = select(runs, task="classification", vocab_size=41, attention_type="softmax")
    group = usual(group, "lr")
    parts = []
    for (layers, heads), part in group.groupby(["num_layers", "num_heads"]):
        rate = by_type(part, scores.flip_rates(part)).iloc[0]
        parts.append(f"{layers} × {heads} {interval(*rate.iloc[:3])} ({rate['runs']:.0f} runs)")
    if not parts:
        raise LogError("no run of softmax at vocabulary 41 to measure this by")
    return f"flip rate of softmax at vocabulary 41, lr {group['lr'].iloc[0]:g}, layers × heads: {', '.join(parts)}"


def flips_by_vocabulary(runs: pd.DataFrame) -> str:
    """Of runs whose one softmax head is nearly one-hot, so that they differ in the vocabulary alone."""
    group = classification_main(runs)
    group = group[(group["attention_type"] == "softmax") & (scores.sparsity_scores(group) > 0.98)]
    parts = []
    for vocab, part in group.groupby("vocab_size"):
        rate = by_type(part, scores.flip_rates(part)).iloc[0]
        parts.append(f"{vocab:.0f} {interval(*rate.iloc[:3])} ({rate['runs']:.0f} runs)")
    if not parts:
        raise LogError("no run of softmax with a sparsity score above 0.98 to measure this by")
    return f"flip rate of one softmax head with a sparsity score above 0.98, by vocabulary: {', '.join(parts)}"


def entropies(runs: pd.DataFrame) -> str:
    second, cls = induction_main(runs), usual(select(classification_main(runs), vocab_size=41), "lr")
    parts = [
        f"{where} {', '.join(f'{name} {entropy_fall(group, name, layer)}' for name in ('softmax', 'sigmoid_unnorm'))}"
        for where, group, layer in (("second layer, induction:", second, 1), ("CLS row:", cls, 0))
    ]
    return f"entropy at the start → end of training; {'; '.join(parts)}"


MEASURED = {
    "a": sinks_by_type,
    "b": effects_of_normalising,
    "b, every setting": effects_by_setting,
    "b, signed kernels": range_of_signed_scores,
    "c": learned,
    "d": sparsity_without_need,
    "e": flips_by_size,
    "e, vocabulary": flips_by_vocabulary,
    "f": entropies,
    "aux 0": without_auxiliary_loss,
}


def main(arguments: list[str]) -> int:
    if len(arguments) > 1 or "--help" in arguments:
        print("usage: python -m src.analysis.claims [SOURCE]", file=sys.stderr)
        return 2
    try:
        runs = load_runs(*arguments or [COMMITTED], history=True)
        for task in set(runs["task"]) & set(scores.SETTINGS) if "task" in runs else scores.SETTINGS:
            of_task(runs, task)
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
