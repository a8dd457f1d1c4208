"""The paper's claims about trained transformers, each with the number measured in the committed runs.

uv run python -m src.analysis.claims                     # the README's tables
uv run python -m src.analysis.claims logs/runs.db        # of other runs
"""

import sys
from collections.abc import Callable, Iterable

import numpy as np
import pandas as pd

from src.analysis import scores
from src.analysis.figures import looks
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
from src.analysis.tables import (
    classification_main,
    in_short,
    induction_main,
    interval,
    rates_table,
    settings_table,
    shares_by_setting,
    sink_table,
    sinks_by_heads,
    solved_by_heads,
    sparsity_table,
)
from src.cli import end_quietly_with_a_pipe, prepare_streams
from src.runs import COMMITTED, HISTORY, LogError, load_runs
from src.tasks import TASKS, Classification, Induction

SIGNED = ("raw_dotproduct_norm", "raw_dotproduct_unnorm", "mlp_norm", "mlp_unnorm")  # kernels of both signs


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
    others = len(select(runs)) - len(select(runs, task=["induction", "classification"]))
    lines += [f"{others:,} runs of other tasks, of which the paper claims nothing"] * bool(others)
    return "\n".join(lines).replace("\N{NO-BREAK SPACE}", " ")


def effects_by_setting(runs: pd.DataFrame) -> str:
    """In how many settings and kernels the share of sinks rises with normalisation, where both solve the task."""
    shares, _, where = shares_by_setting(runs)
    parts = []
    for aux, group in shares.groupby("aux_loss_weight"):
        change = [value for name, twin in twins(shares) for value in (group[name] - group[twin]).dropna()]
        higher, lower = sum(value > 0 for value in change), sum(value < 0 for value in change)
        parts.append(f"aux {aux:g} higher in {higher}, equal in {len(change) - higher - lower}, lower in {lower}")
    return f"share of sinks with normalisation, pairs of a kernel and a setting at {where}: {'; '.join(parts)}"


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
    main = require_runs(induction_main(runs), "of induction to measure this by")
    return f"share of heads: {of_types(by_type(main, scores.sink_shares(main)), ('softmax', 'sigmoid_unnorm'))}"


def effects_of_normalising(runs: pd.DataFrame) -> str:
    main = require_runs(induction_main(runs), "of induction to measure this by")
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
    when attention is half polarized. LogError where it never is."""
    polarized = (entropies < 0.5).any(axis=1)
    if not polarized.any():
        raise LogError("the entropy falls below 0.5 in no run; train longer")
    half = (entropies[polarized] < 0.5).argmax(axis=1)
    at_half = orders[polarized, half]
    where = "" if polarized.all() else f" in {polarized.sum()} of {len(polarized)} runs"
    return (
        f"the entropy falls below 0.5{where} at step {half.min() + 1} to {half.max() + 1}, when "
        f"{interval(*mean_interval(at_half), seeds=len(half))} of all pairs of tokens are in the order of the end"
    )


def range_of_signed_scores(runs: pd.DataFrame) -> str:
    """Of the signed kernels' second-layer heads in runs of the main setting that solve the task."""
    main = require_runs(induction_main(runs), "of induction to measure this by")
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
    main = require_runs(classification_main(runs), "of classification to measure this by")
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
    group = require_runs(classification_main(runs), "of classification to measure this by")
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


TABLES = {
    "sinks": sink_table,
    "rates": rates_table,
    "heads": sinks_by_heads,
    "heads that learn": solved_by_heads,
    "settings": settings_table,
    "sparsity": sparsity_table,
}


def told(measure: Callable[[pd.DataFrame], str], runs: pd.DataFrame) -> str:
    """What is measured in these runs, or the sentence that says why it cannot be."""
    try:
        return measure(runs)
    except LogError as error:
        return str(error)


def main(arguments: list[str]) -> int:
    if any(argument.startswith("-") for argument in arguments):
        print("usage: python -m src.analysis.claims [SOURCE …]", file=sys.stderr)
        return 2
    prepare_streams()  # that may lack − and →
    try:
        runs = settled(load_runs(arguments or COMMITTED, history=True))
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
    end_quietly_with_a_pipe()
    sys.exit(main(sys.argv[1:]))
