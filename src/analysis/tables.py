"""The tables of the paper's claims, in Markdown: which runs they are of, and how numbers are written.

Runs that are pooled differ in nothing but seeds and what is named here.
"""

from collections.abc import Iterable

import numpy as np
import pandas as pd

from src.analysis import scores
from src.analysis.figures import INDUCTION_SETTING, INDUCTION_SETTINGS, filling, looks, panel_title
from src.analysis.scores import by_type
from src.analysis.selection import alike, finished, in_words, preferred, require_runs, select, setting_in_words
from src.tasks import Induction


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
    header = [title] + [f"{name}, {how}" for name in columns for how in (filling(shown)[0], "not")]
    rows = {look.kernel: [look.label] for look in shown.values()}
    for table in columns.values():
        for kernel, row in rows.items():
            of_kernel = {look.normalised: name for name, look in shown.items() if look.kernel == kernel}
            names = (of_kernel.get(normalised) for normalised in (True, False))
            row.extend(in_short(table.loc[name]) if name in table.index else "" for name in names)
    return markdown(header, rows.values())


def sink_table(runs: pd.DataFrame) -> str:
    main = require_runs(induction_main(runs), "of induction to measure this by")
    shares = by_type(main, scores.sink_shares(main))
    magnitudes = by_type(main, scores.sink_shares(main, score="mag_attn_bos_global"))
    return kernel_table("second-layer heads that are sinks", {"published score": shares, "share of abs(w)": magnitudes})


def rates_table(runs: pd.DataFrame) -> str:
    """Shares of sinks in the main setting at each learning rate, numbers of heads pooled, and as the paper's figures
    pool them: each combination of both weighs the same."""
    main = require_runs(alike(main_setting(runs), "lr", "num_heads"), "of induction to measure this by")
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
    group = require_runs(alike(select(runs, task="induction"), *INDUCTION_SETTING), "of induction to measure this by")
    shares = group[[*INDUCTION_SETTING, "attention_type"]].assign(share=scores.sink_shares(group))
    table = shares.groupby([*INDUCTION_SETTING, "attention_type"])["share"]
    at = f"lr {group['lr'].iloc[0]:g}, {group['num_heads'].iloc[0]} heads"
    return table.mean().unstack(), table.size().unstack(fill_value=0), at


def settings_table(runs: pd.DataFrame) -> str:
    """Share of sinks in each setting, of each kernel with normalisation / without. A dash: no run solves the task;
    blank: none was trained."""
    shares, trained, where = shares_by_setting(runs)
    kernels = names_by_kernel(shares)

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


def solved_by_heads(runs: pd.DataFrame) -> str:
    """How many runs of the main setting solve the task, of those trained, of each kernel with normalisation / without,
    by the number of heads."""
    main = require_runs(alike(main_setting(runs), "num_heads"), "of induction to measure this by")
    solves = scores.solving(main, Induction.solved) & finished(main)
    solved = main[["attention_type", "num_heads"]].assign(solved=solves)
    counts = solved.groupby(["attention_type", "num_heads"])["solved"].agg(["sum", "size"])
    heads = sorted(main["num_heads"].unique())

    def cell(name: str, num: int) -> str:
        return "{} of {}".format(*counts.loc[name, num]) if (name, num) in counts.index else ""

    rows = [
        [label, *(" / ".join(filter(None, (cell(name, num) for name in names))) for num in heads)]
        for (_, label), names in names_by_kernel(main["attention_type"]).items()
    ]
    title = f"runs that solve the task, lr {main['lr'].iloc[0]:g}"
    return markdown([title, *(in_words("num_heads", num) for num in heads)], rows)


def sinks_by_heads(runs: pd.DataFrame) -> str:
    """Shares of sinks in the main setting by the number of heads."""
    main = require_runs(alike(main_setting(runs), "num_heads"), "of induction to measure this by")
    shares = scores.sink_shares(main)
    columns = {
        in_words("num_heads", num): by_type(part, shares[shares.index.isin(part.index)])
        for num, part in main.groupby("num_heads")
    }
    return kernel_table(f"second-layer heads that are sinks, lr {main['lr'].iloc[0]:g}", columns)


def names_by_kernel(names: Iterable[str]) -> dict[tuple[str, str], list[str]]:
    """Attention types by kernel, a section and a label, the normalised one first; without `uniform`."""
    kernels: dict[tuple, list[str]] = {}
    for name, look in looks(name for name in names if name != "uniform").items():
        kernels.setdefault(look.kernel, []).append(name)
    return kernels


def sparsity_table(runs: pd.DataFrame) -> str:
    main = require_runs(classification_main(runs), "of classification to measure this by")
    columns = {"sparsity": scores.sparsity_scores(main), "flip rate": scores.flip_rates(main)}
    title = setting_in_words(main, besides=[name for name in main if name not in ("num_layers", "num_heads")])
    title = title.partition(", ")[2].replace("\N{NO-BREAK SPACE}", " ")
    return kernel_table(title, {name: by_type(main, values) for name, values in columns.items()})
