"""The paper's claims about trained transformers, each with the number measured in the committed runs.

uv run python -m src.claims                     # the README's tables
uv run python -m src.claims logs/runs.db        # of other runs
"""

import sys
from collections.abc import Iterable

import pandas as pd

from src import scores
from src.attention import ATTENTION
from src.runs import COMMITTED, LogError, load_runs
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


def sparsity_table(runs: pd.DataFrame) -> str:
    main = classification_main(runs)
    columns = {"sparsity": scores.sparsity_scores(main), "flip rate": scores.flip_rates(main)}
    return kernel_table("1 layer, 1 head", {name: by_type(main, values) for name, values in columns.items()})


def effect_of_normalising(runs: pd.DataFrame, values: pd.Series, label: str) -> str:
    """Mean over seeds of a kernel's value with normalisation less the one without, for each seed."""
    table = runs.loc[values.index, ["attention_type", "seed"]].assign(value=values)
    by_seed = table.pivot_table(index="seed", columns="attention_type", values="value")
    normalised, other = (
        next(n for n, k in ATTENTION.items() if k.label == label and k.normalised == how) for how in (True, False)
    )
    return interval(*mean_interval((by_seed[normalised] - by_seed[other]).dropna().to_numpy()), sign="+")


def entropy_fall(runs: pd.DataFrame, attention_type: str, layer: int) -> str:
    """Mean normalised entropy of a layer's heads at the start and at the end of training."""
    line = scores.curve(runs[runs["attention_type"] == attention_type], "attn_entropy", layer)
    return f"{line['mean'].iloc[0]:.2f} → {interval(*line.iloc[-1])}"


# What was measured of each claim of Section 4, as the README says it.


def sinks_by_type(runs: pd.DataFrame) -> str:
    main = induction_main(runs)
    table = by_type(main, scores.sink_shares(main))
    cells = (f"{name} {interval(*table.loc[name].iloc[:3])}" for name in ("softmax", "sigmoid_unnorm"))
    return f"share of heads: {', '.join(cells)}"


def effects_of_normalising(runs: pd.DataFrame) -> str:
    main = induction_main(runs)
    published, magnitudes = (
        ", ".join(f"{label} {effect_of_normalising(main, values, label)}" for label in labels)
        for labels, values in (
            (("sigmoid", "elu · elu", "elu", "linear", "mlp"), scores.sink_shares(main)),
            (("linear", "mlp"), scores.sink_shares(main, score="mag_attn_bos_global")),
        )
    )
    return f"change of the share: {published}; by shares of abs(w): {magnitudes}"


def learned(runs: pd.DataFrame) -> str:
    parts = []
    for task, accuracy in (("induction", "eval/acc_induction"), ("classification", "eval/acc")):
        group = select(runs, task=task)
        solved = group.loc[group["attention_type"] != "uniform", accuracy] > scores.SOLVED
        counts = [f"lr {lr:g} {part.sum():,} of {len(part):,}" for lr, part in solved.groupby(group["lr"])]
        parts.append(f"{task}: {', '.join(counts)}")
    return f"runs with accuracy above {scores.SOLVED}, {'; '.join(parts)}"


def sparsity_without_need(runs: pd.DataFrame) -> str:
    main = classification_main(runs)
    table = by_type(main, scores.sparsity_scores(main))
    cells = (f"{name} {interval(*table.loc[name].iloc[:3])}" for name in ("softmax", "uniform"))
    uniform = main.loc[main["attention_type"] == "uniform", "eval/acc"]
    return f"sparsity score: {', '.join(cells)}, whose accuracy is {uniform.mean():.3f} all the same"


def flips_by_size(runs: pd.DataFrame) -> str:
    group = select(runs, task="classification", vocab_size=41, lr=1e-3, attention_type="softmax")
    parts = []
    for (layers, heads), part in group.groupby(["num_layers", "num_heads"]):
        rate = interval(*by_type(part, scores.flip_rates(part)).iloc[0, :3])
        parts.append(f"{layers} × {heads} {rate}")
    return f"flip rate of softmax, layers × heads: {', '.join(parts)}"


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
}


def main(arguments: list[str]) -> int:
    try:
        runs = load_runs(*arguments or [COMMITTED], history=True)
        print(sink_table(runs), sparsity_table(runs), sep="\n\n", end="\n\n")
        for claim, measure in MEASURED.items():
            print(f"({claim}) {measure(runs)}")
    except LogError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
