"""The paper's claims about trained transformers, each with the number measured in the committed runs.

uv run python -m src.analysis.claims                     # the README's tables
uv run python -m src.analysis.claims logs/runs.db        # of other runs
"""

import sys
from collections.abc import Callable, Iterable

import numpy as np
import pandas as pd

from src.analysis import scores
from src.analysis.figures import INDUCTION_SETTING, INDUCTION_SETTINGS, looks, panel_title
from src.analysis.scores import by_type, mean_interval
from src.analysis.selection import (
    alike,
    finished,
    of_task,
    preferred,
    require_columns,
    require_runs,
    select,
    setting_in_words,
    settled,
    what_varies,
)
from src.runs import COMMITTED, HISTORY, LogError, load_runs
from src.tasks import TASKS, Classification, Induction

SIGNED = ("raw_dotproduct_norm", "raw_dotproduct_unnorm", "mlp_norm", "mlp_unnorm")  # kernels of both signs


# Which runs. Those that are pooled differ in nothing but seeds and what is named here.


def main_setting(runs: pd.DataFrame) -> pd.DataFrame:
    """The induction runs of the main setting of Section 4.1; of a table that has none of it, of its commonest."""
    setting = {"aux_loss_weight": 0.2, "shift_query_token": True, "positional_type": "add"}
    return preferred(select(runs, task="induction"), **setting)


def induction_main(runs: pd.DataFrame) -> pd.DataFrame:
    """Those at the commonest learning rate and number of heads."""
    return alike(main_setting(runs))


def classification_main(runs: pd.DataFrame) -> pd.DataFrame:
    """One layer, one head, as in Figure 6, where learning rates, vocabularies, MLP and LayerNorm are pooled."""
    one = preferred(select(runs, task="classification"), num_layers=1, num_heads=1)
    return alike(one, "lr", "vocab_size", "use_mlp", "use_layernorm")


def chosen(runs: pd.DataFrame) -> str:
    """Of each task, how many runs there are, and of which the tables and most claims below are."""
    lines = []
    for task, choose in (("induction", induction_main), ("classification", classification_main)):
        ended, main = select(runs, task=task), choose(runs)
        num = (~finished(ended)).sum()
        lines.append(f"{len(ended):,} runs of {task}" + (f", {num:,} of them diverged" if num else ""))
        lines[-1] += f", which differ in {what_varies(ended)}" if what_varies(ended) else ""
        if len(main):
            pooled = f"; pooled: {what_varies(main)}" if what_varies(main) else ""
            lines.append(f"  of which the main ones, {len(main):,}: {setting_in_words(main)}{pooled}")
    return "\n".join(lines).replace("\N{NO-BREAK SPACE}", " ")


# Words


def interval(mean: float, low: float, high: float, sign: str = "", seeds: int | None = None) -> str:
    """0.80 [0.65, 0.95], or 1.00 where the interval is a point, or 1.00 (1 seed)."""
    mean, low, high = (f"{value + 0.0:{sign}.2f}".replace("-", "−") for value in (mean, low, high))
    if seeds == 1:
        return f"{mean} (1 seed)"
    return mean if low == high else f"{mean} [{low}, {high}]"


def in_short(row: pd.Series) -> str:
    """The interval of a row of a table `by_type`."""
    return interval(row["mean"], row["low"], row["high"], seeds=int(row["seeds"]))


def markdown(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    header = list(header)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [header, ["---"] * len(header), *rows])


def kernel_table(title: str, columns: dict[str, pd.DataFrame]) -> str:
    """Results `by_type`, each column by its name, as a Markdown table: a row for each kernel, two columns for
    each result, normalised and not."""
    shown = looks(name for table in columns.values() for name in table.index if name != "uniform")
    header = [title] + [f"{name}, {how}" for name in columns for how in ("normalised", "not")]
    rows = {look.kernel: [look.label] for look in shown.values()}
    for table in columns.values():
        for kernel, row in rows.items():
            of_kernel = {look.normalised: name for name, look in shown.items() if look.kernel == kernel}
            names = (of_kernel.get(normalised) for normalised in (True, False))
            row.extend(in_short(table.loc[name]) if name in table.index else "" for name in names)
    return markdown(header, rows.values())


def sink_table(runs: pd.DataFrame) -> str:
    main = induction_main(runs)
    require_runs(main, "of induction to measure this by")
    shares = by_type(main, scores.sink_shares(main))
    magnitudes = by_type(main, scores.sink_shares(main, score="mag_attn_bos_global"))
    return kernel_table("second-layer heads that are sinks", {"published score": shares, "share of abs(w)": magnitudes})


def rates_table(runs: pd.DataFrame) -> str:
    """Shares of sinks in the main setting at each learning rate, numbers of heads pooled, and as the paper's figures
    pool them: each combination of both weighs the same."""
    main = alike(main_setting(runs), "lr", "num_heads")
    require_runs(main, "of induction to measure this by")
    shares = scores.sink_shares(main)
    columns = {
        f"lr {lr:g}": by_type(part, shares[shares.index.isin(part.index)], ["num_heads"])
        for lr, part in main.groupby("lr")
    }
    columns["pooled"] = by_type(main, shares, ["lr", "num_heads"])
    return kernel_table("second-layer heads that are sinks", columns)


def shares_by_setting(runs: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame, str]:
    """Mean share of sinks of each attention type (columns) in each of the 12 settings, NaN where no run solves the
    task; how many runs were trained of each; and at which learning rate and number of heads: the commonest."""
    group = alike(select(runs, task="induction"), *INDUCTION_SETTING)
    require_runs(group, "of induction to measure this by")
    shares = group[[*INDUCTION_SETTING, "attention_type"]].assign(share=scores.sink_shares(group))
    table = shares.groupby([*INDUCTION_SETTING, "attention_type"])["share"]
    at = f"lr {group['lr'].iloc[0]:g}, {group['num_heads'].iloc[0]} heads"
    return table.mean().unstack(), table.size().unstack(fill_value=0), at


def settings_table(runs: pd.DataFrame) -> str:
    """Share of sinks in each setting, of each kernel with normalisation / without. A dash: no run solves the task;
    blank: none was trained."""
    shares, trained, where = shares_by_setting(runs)
    shown = looks(name for name in shares if name != "uniform")
    kernels: dict[tuple, list[str]] = {}
    for name, look in shown.items():
        kernels.setdefault(look.kernel, []).append(name)  # normalised first

    def cell(key: tuple, name: str) -> str:
        if key not in shares.index or not trained.loc[key, name]:
            return ""
        return "–" if np.isnan(shares.loc[key, name]) else f"{shares.loc[key, name]:.2f}"

    rows = []
    for setting in INDUCTION_SETTINGS:
        key = tuple(setting.values())
        cells = [" / ".join(filter(None, (cell(key, name) for name in names))) for names in kernels.values()]
        rows.append([panel_title(INDUCTION_SETTING, key, Induction), *cells])
    counts = trained.to_numpy()[trained.to_numpy() > 0]
    seeds = f"{counts.min()} to {counts.max()} seeds" if counts.max() > 1 else "1 seed"
    return markdown([f"{where}; {seeds} each", *(label for _, label in kernels)], rows)


def effects_by_setting(runs: pd.DataFrame) -> str:
    """In how many settings and kernels the share of sinks rises with normalisation, where both solve the task."""
    shares, _, where = shares_by_setting(runs)
    parts = []
    for aux, group in shares.groupby("aux_loss_weight"):
        change = [value for name, twin in twins(shares) for value in (group[name] - group[twin]).dropna()]
        higher, lower = sum(value > 0 for value in change), sum(value < 0 for value in change)
        parts.append(f"aux {aux:g} higher in {higher}, equal in {len(change) - higher - lower}, lower in {lower}")
    return f"share of sinks with normalisation, pairs of a kernel and a setting at {where}: {'; '.join(parts)}"


def sparsity_table(runs: pd.DataFrame) -> str:
    main = classification_main(runs)
    require_runs(main, "of classification to measure this by")
    columns = {"sparsity": scores.sparsity_scores(main), "flip rate": scores.flip_rates(main)}
    title = setting_in_words(main, besides=[name for name in main if name not in ("num_layers", "num_heads")])
    title = title.partition(", ")[2].replace("\N{NO-BREAK SPACE}", " ")
    return kernel_table(title, {name: by_type(main, values) for name, values in columns.items()})


def twins(names: Iterable[str]) -> list[tuple[str, str]]:
    """The pairs among these attention types that are one kernel with normalisation and without."""
    shown = looks(names)
    return [
        (name, other)
        for name, look in shown.items()
        for other, its in shown.items()
        if look.kernel == its.kernel and look.normalised and not its.normalised
    ]


def effects_of_normalising_in(runs: pd.DataFrame, values: pd.Series) -> str:
    """For each kernel its value with normalisation less the one without: mean over seeds that have both."""
    table = runs.loc[values.index, ["attention_type", "seed"]].assign(value=values)
    by_seed = table.pivot_table(index="seed", columns="attention_type", values="value")
    parts = []
    for name, twin in twins(by_seed):
        difference = (by_seed[name] - by_seed[twin]).dropna().to_numpy()
        if len(difference):
            shown = interval(*mean_interval(difference, bounds=(-1, 1)), sign="+", seeds=len(difference))
            parts.append(f"{looks([name])[name].label} {shown}")
    if not parts:
        raise LogError("no kernel has runs of one seed with normalisation and without")
    return ", ".join(parts)


def entropy_fall(runs: pd.DataFrame, attention_type: str, layer: int) -> str:
    """Mean normalised entropy of a layer's heads at the start and at the end of training."""
    runs = runs[runs["attention_type"] == attention_type]
    require_runs(runs, f"of {attention_type} to measure this by")
    line = scores.curve(runs, "attn_entropy", layer)
    return f"{line['mean'].iloc[0]:.2f} → {interval(*line.iloc[-1], seeds=runs['seed'].nunique())}"


# What was measured of each claim of Section 4, as the README says it; LogError where no run says anything.


def of_types(table: pd.DataFrame, names: Iterable[str]) -> str:
    """Attention types and their means in a table `by_type`: softmax 1.00, …"""
    if missing := [name for name in names if name not in table.index]:
        raise LogError(f"no run of {missing[0]} to measure this by")
    return ", ".join(f"{name} {in_short(table.loc[name])}" for name in names)


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
    group = alike(group, "shift_query_token", "positional_type")
    group = group[finished(group)]
    require_runs(group, "of softmax with aux_loss_weight 0 to measure this by")
    heads = group[scores.head_columns(group, "rel_attn_bos_global", layer=1)].to_numpy()
    heads = heads[~np.isnan(heads)]
    names = scores.head_columns(group, "attn_entropy", 1, HISTORY)
    entropy = np.array([values[-1] for values in group[names].to_numpy().ravel() if np.ndim(values)])
    if not (len(entropy) and len(heads)):
        raise LogError("no run of softmax with aux_loss_weight 0 has a second layer and a history")
    return (
        f"{len(group)} runs, {(heads > scores.SINK).sum()} of {heads.size} heads are sinks; sink scores "
        f"{heads.min():.2f} to {heads.max():.2f}, entropy at the end {entropy.min():.2f} to {entropy.max():.2f}"
    )


def learned(runs: pd.DataFrame) -> str:
    """How many runs solve the tasks, of those that ended, and their mean accuracy, by learning rate; of induction, by
    positions too. Runs of all sizes and settings count."""
    parts = []
    for name, task in (("induction", Induction), ("classification", Classification)):
        group = select(runs, task=name)
        if not len(group):
            continue
        require_columns(group, [task.accuracy, "lr", "positional_type"])
        group = alike(group[group["attention_type"] != "uniform"], *task.settings, "vocab_size")
        kinds = np.where(group["positional_type"] == "no", "without positions", "with positions")
        for kind, part in group.groupby(kinds):
            counts = [f"lr {lr:g} {solved(at_lr, task.accuracy)}" for lr, at_lr in part.groupby("lr")]
            parts.append(f"{name}{f' {kind}' if name == 'induction' else ''}: {', '.join(counts)}")
    if not parts:
        raise LogError("no run of induction or classification to measure this by")
    return f"runs with accuracy above {scores.SOLVED} (mean accuracy): {'; '.join(parts)}"


def solved(runs: pd.DataFrame, accuracy: str) -> str:
    ended = runs[finished(runs) & runs[accuracy].notna()]
    diverged = f", {len(runs) - len(ended):,} diverged" if len(ended) < len(runs) else ""
    if not len(ended):
        return f"0 of {len(runs):,} ({len(runs):,} diverged)"
    seeds = ended["seed"].to_numpy()
    mean = mean_interval(ended[accuracy].to_numpy(), seeds)
    shown = interval(*mean, seeds=len(set(seeds))).replace(" (1 seed)", ", 1 seed")
    return f"{(ended[accuracy] > scores.SOLVED).sum():,} of {len(runs):,} ({shown}{diverged})"


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
    main = main[main["attention_type"].isin(SIGNED)]
    require_runs(main, "of a signed kernel to measure this by")
    main = main[scores.solving(main, Induction.solved)]
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
    group = alike(group, "num_layers", "num_heads", "use_mlp", "use_layernorm")
    require_runs(group, "of softmax at vocabulary 41 to measure this by")
    parts = []
    for (layers, heads), part in group.groupby(["num_layers", "num_heads"]):
        for _, rate in by_type(part, scores.flip_rates(part)).iterrows():
            parts.append(f"{layers} × {heads} {in_short(rate)} ({rate['runs']:.0f} runs)")
    return f"flip rate of softmax at vocabulary 41, lr {group['lr'].iloc[0]:g}, layers × heads: {', '.join(parts)}"


def flips_by_vocabulary(runs: pd.DataFrame) -> str:
    """Of runs whose one softmax head is nearly one-hot, so that they differ in the vocabulary alone."""
    group = classification_main(runs)
    sparse = scores.sparsity_scores(group)
    group = group.loc[sparse.index[sparse > 0.98]]
    group = group[group["attention_type"] == "softmax"]
    require_runs(group, "of softmax with a sparsity score above 0.98 to measure this by")
    parts = []
    for vocab, part in group.groupby("vocab_size"):
        for _, rate in by_type(part, scores.flip_rates(part)).iterrows():
            parts.append(f"{vocab:.0f} {in_short(rate)} ({rate['runs']:.0f} runs)")
    return f"flip rate of one softmax head with a sparsity score above 0.98, by vocabulary: {', '.join(parts)}"


def entropies(runs: pd.DataFrame) -> str:
    second = induction_main(runs)
    cls = alike(preferred(classification_main(runs), vocab_size=41), "use_mlp", "use_layernorm")
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


TABLES = {"sinks": sink_table, "rates": rates_table, "settings": settings_table, "sparsity": sparsity_table}


def told(measure: Callable[[pd.DataFrame], str], runs: pd.DataFrame) -> str:
    """What is measured in these runs, or the sentence that says why it cannot be."""
    try:
        return measure(runs)
    except LogError as error:
        return str(error)


def main(arguments: list[str]) -> int:
    if len(arguments) > 1 or "--help" in arguments:
        print("usage: python -m src.analysis.claims [SOURCE]", file=sys.stderr)
        return 2
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # where − and → have no code
    try:
        runs = settled(load_runs(*arguments or [COMMITTED], history=True))
        require_columns(runs, ["task"])
        for task in set(runs["task"]) & set(TASKS):
            of_task(runs, task)
    except LogError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(told(chosen, runs), end="\n\n")
    for name, measure in (TABLES | MEASURED).items():
        print(f"({name})", told(measure, runs), sep="\n\n" if name in TABLES else " ", end="\n\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
