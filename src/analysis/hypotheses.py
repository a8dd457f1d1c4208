"""What the benchmark says of each hypothesis about functions made against sinks, with number and verdict.

uv run python -m src.analysis.hypotheses                    # of the committed runs, and the benchmark's tables
uv run python -m src.analysis.hypotheses logs/runs.db       # of others
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from src.analysis.mitigations import (
    GU,
    MEASURES,
    PAPERS,
    SCENES,
    SOURCES,
    area,
    by_optimizer,
    heads_of,
    in_scene,
    of_scene,
    over_seeds,
    profile,
    summaries,
    summary,
    with_fields,
)
from src.analysis.scores import solving
from src.analysis.selection import require_columns, require_runs
from src.analysis.tables import interval, markdown
from src.cli import end_quietly_with_a_pipe, prepare_streams
from src.runs import LogError, load_runs

MUST_SUM_TO_ONE = ("softmax", "sigmoid_norm", "entmax15", "sparsemax", "ssmax")
OUTLETS = ("softmax1", "softmax_sink", "key_bias", "kv_bias", "softpick")


def table(runs: pd.DataFrame, name: str) -> str:
    """The benchmark's table of one scene, in Markdown."""
    chosen = of_scene(with_fields(runs), name)
    require_runs(chosen, f"of {SCENES[name].title}")
    rows = summary(chosen, SCENES[name])
    labels = [label for label in ("area", *MEASURES, "ms a step") if label in rows]
    lines = [
        [kind, f"{row['solved']} of {row['runs']}", f"{row['lr']:g}", *(in_cell(row[label]) for label in labels)]
        for kind, row in rows.iterrows()
    ]
    return markdown([SCENES[name].title, "solved", "lr", "area under the sink profile", *labels[1:]], lines)


def optimizers_table(runs: pd.DataFrame, name: str) -> str:
    """A scene's functions under each optimiser, in Markdown: the area under the sink profile, and who solves."""
    columns = by_optimizer(runs, name)
    require_runs(runs if len(columns) > 1 else runs[:0], f"of {SCENES[name].title} under several optimisers")
    kinds = dict.fromkeys(kind for rows in columns.values() for kind in rows.index)

    def cell(rows: pd.DataFrame, kind: str) -> str:
        if kind not in rows.index:
            return ""
        row = rows.loc[kind]
        return f"{in_cell(row['area'])}; {row['solved']} of {row['runs']}, lr {row['lr']:g}"

    lines = [[kind, *(cell(rows, kind) for rows in columns.values())] for kind in kinds]
    return markdown([f"{SCENES[name].title}: area; solved, lr", *columns], lines)


def in_cell(value: Any) -> str:
    """A mean with its interval as text; a dash where there is none."""
    if not isinstance(value, tuple):
        return "–"
    return interval(*value, seeds=1 if np.isnan(value[1]) else None)


@dataclass(frozen=True)
class Finding:
    """What was measured of a hypothesis.

    Args:
        measured: The numbers.
        verdict: "holds", "does not hold", "open" where the interval or the runs decide neither.
    """

    measured: str
    verdict: str


def verdict(*holds: bool | None) -> str:
    """Of what each part of a hypothesis says: None where its interval decides nothing."""
    if any(part is not None and not part for part in holds):
        return "does not hold"
    return "open" if not holds or None in holds else "holds"


def exceeds(value: Any, bound: float) -> bool | None:
    """Whether a mean (mean, low, high) exceeds the bound; None where the bound is in its interval, where there is a
    single seed, or where there is no mean, since no run measured it."""
    if not isinstance(value, tuple):
        return None
    _, low, high = value
    return True if low > bound else False if high < bound else None


def falls_short(value: Any, bound: float) -> bool | None:
    above = exceeds(value, bound)
    return None if above is None else not above


def sinks(runs: pd.DataFrame, name: str, kinds: Sequence[str], columns: str | None = None) -> dict[str, tuple]:
    """The mean area under the sink profile and its interval, of the runs of each kind that solve the scene; of the
    heads' `columns` where they are given."""
    found, scene = {}, SCENES[name]
    chosen = of_scene(with_fields(runs), name)
    for kind in kinds:
        group = chosen[(chosen["attention_type"] == kind) & (chosen["state"] == "finished")]
        group = group[solving(group, scene.task.solved)] if len(group) else group
        if len(group):
            weights = area(heads_of(group, columns or scene.sink))
            found[kind] = over_seeds(weights, group["seed"].to_numpy(), (0, 1))
    if not found:
        raise LogError(f"no run of {', '.join(kinds)} solves {scene.title}")
    return found


def listed(values: Mapping[str, tuple]) -> str:
    return ", ".join(f"{name} {in_cell(value)}" for name, value in values.items())


def theorem(runs: pd.DataFrame) -> Finding:
    """Every softmax model that solves trigger puts its attention on the anchor where it has nothing to do."""
    parts, least, several = [], [], False
    for name in (name for name, scene in SCENES.items() if scene.fields.get("use_bos")):
        chosen = of_scene(with_fields(runs), name)
        chosen = chosen[(chosen["attention_type"] == "softmax") & (chosen["state"] == "finished")]
        if len(chosen):
            solved = chosen[solving(chosen, SCENES[name].task.solved)]
            weights = area(heads_of(solved, SCENES[name].sink))
            least += list(weights)
            several |= len(set(solved["seed"])) > 1
            smallest = f", BOS's weight at least {weights.min():.3f}" if len(weights) else ""
            parts.append(f"{SCENES[name].title}: {len(solved)} of {len(chosen)} runs solve it{smallest}")
    if not least:
        raise LogError("no run of softmax solves trigger")
    return Finding("; ".join(parts), verdict(False if min(least) <= 0.95 else True if several else None))


def outlets(runs: pd.DataFrame) -> Finding:
    """A function with an outlet inside its normalisation uses it, and not the anchor."""
    parts, holds = [], []
    for name in ("trigger", "trigger_no_skip", "backcopy", "induction"):
        try:
            found = sinks(runs, name, OUTLETS, SCENES[name].anchor)
        except LogError:
            continue
        counts = on_the_anchor(runs, name, list(found))
        parts.append(f"BOS's weight, {SCENES[name].title}: {listed(found)} (more than half in {counts})")
        holds += [falls_short(value, 0.5) for value in found.values()]
    if not parts:
        raise LogError("no run with an outlet solves trigger, backcopy or induction")
    return Finding("; ".join(parts), verdict(*holds))


def on_the_anchor(runs: pd.DataFrame, name: str, kinds: Sequence[str]) -> str:
    """In how many of the functions' runs that solve a scene BOS has more than half of the weight, for each rate."""
    chosen = in_scene(with_fields(runs), name)
    chosen = chosen[chosen["attention_type"].isin(kinds) & (chosen["state"] == "finished")]
    chosen = chosen[solving(chosen, SCENES[name].task.solved)]
    above = pd.Series(area(heads_of(chosen, SCENES[name].anchor)) > 0.5, index=chosen.index)
    return ", ".join(f"{of.sum()} of {len(of)} runs at lr {lr:g}" for lr, of in above.groupby(chosen["lr"]))


def gates(runs: pd.DataFrame) -> Finding:
    """A gate beside softmax does not remove a sink that has an anchor."""
    found = sinks(runs, "trigger", ("gated_head", "gated_element", "value_gated"))
    return Finding(f"BOS's weight: {listed(found)}", verdict(*(exceeds(value, 0.9) for value in found.values())))


def sums_to_one(runs: pd.DataFrame) -> Finding:
    """What has to sum to 1 sinks, sparse or not; what need not does not."""
    must = sinks(runs, "trigger", MUST_SUM_TO_ONE)
    need_not = sinks(runs, "trigger", ("sigmoid_unnorm", "sigmoid_bias", "relu_mean", "softpick", "softmax_clipped"))
    holds = [exceeds(v, 0.9) for v in must.values()] + [falls_short(v, 0.5) for v in need_not.values()]
    return Finding(f"BOS's weight, must: {listed(must)}; need not: {listed(need_not)}", verdict(*holds))


def without_anchor(runs: pd.DataFrame) -> Finding:
    """Without an anchor nothing whose weights have to sum to 1 solves trigger."""
    solved = who_solves(runs, "trigger_no_bos", MUST_SUM_TO_ONE)
    holds = [False if num else None if seeds < 2 else True for num, _, seeds in solved.values()]
    return Finding(f"solved: {counted(solved)}", verdict(*holds))


def freed(runs: pd.DataFrame) -> Finding:
    """Without an anchor functions with an outlet or a gated output solve it, and relu_mean: most of their runs."""
    solved = who_solves(runs, "trigger_no_bos", (*OUTLETS, "gated_head", "gated_element", "relu_mean"))
    holds = [None if seeds < 2 else 2 * num > of for num, of, seeds in solved.values()]
    return Finding(f"solved: {counted(solved)}", verdict(*holds))


def counted(solved: Mapping[str, tuple[int, int, int]]) -> str:
    return ", ".join(f"{name} {num} of {of}" for name, (num, of, _) in solved.items())


def who_solves(runs: pd.DataFrame, name: str, kinds: Sequence[str]) -> dict[str, tuple[int, int, int]]:
    """How many runs of each kind solve a scene, how many there are, and of how many seeds are those that finished."""
    chosen = of_scene(with_fields(runs), name)
    chosen = chosen[chosen["attention_type"].isin(kinds)]
    require_runs(chosen, f"of {', '.join(kinds)} on {SCENES[name].title}")
    rows = summary(chosen, SCENES[name])
    seeds = chosen[chosen["state"] == "finished"].groupby("attention_type")["seed"].nunique()
    return {
        kind: (rows.loc[kind, "solved"], rows.loc[kind, "runs"], seeds.get(kind, 0))
        for kind in kinds
        if kind in rows.index
    }


DRAIN = {"area": "BOS's share", "value drain": "value drain", "residual peak": "residual peak"}


def drains(runs: pd.DataFrame) -> Finding:
    """On backcopy softmax sinks and drains the anchor's value; relu_mean does neither."""
    scene = SCENES["backcopy"]
    chosen = of_scene(with_fields(runs), "backcopy")
    chosen = chosen[solving(chosen, scene.task.solved)] if len(chosen) else chosen
    if not {"softmax", "relu_mean"} <= set(chosen["attention_type"]):
        raise LogError("no runs of softmax and relu_mean that solve backcopy")
    rows = summary(chosen, scene)
    found = {name: {label: rows.loc[name].get(label) for label in DRAIN} for name in ("softmax", "relu_mean")}
    text = "; ".join(
        f"{name}: {', '.join(f'{words} {in_cell(row[label])}' for label, words in DRAIN.items())}"
        for name, row in found.items()
    )
    soft, relu = found.values()
    holds = [exceeds(soft["area"], 0.5), falls_short(soft["value drain"], 0.5)]
    holds += [falls_short(relu["area"], 0.5), exceeds(relu["value drain"], 0.5)]
    return Finding(text, verdict(*holds))


def descents(runs: pd.DataFrame) -> Finding:
    """Gradient descent has softmax's sinks on backcopy without the residual peaks that AdamW has (Guo et al.)."""
    columns = by_optimizer(runs, "backcopy")
    found = {label: columns[label].loc["softmax"] for label in ("AdamW", "gradient descent") if label in columns}
    if len(found) < 2:
        raise LogError("no runs of softmax on backcopy under both AdamW and gradient descent")
    parts = [
        f"{label}: {row['solved']} of {row['runs']} solve it at lr {row['lr']:g}, "
        f"BOS's share {in_cell(row.get('area'))}, peak {in_cell(row.get('residual peak'))}"
        for label, row in found.items()
    ]
    adam, descent = found.values()
    peak = adam.get("residual peak")
    if not (2 * adam["solved"] > adam["runs"] and 2 * descent["solved"] > descent["runs"] and isinstance(peak, tuple)):
        return Finding("; ".join(parts), verdict(None))
    _, least, most = peak
    above, below = (exceeds(descent.get("residual peak"), bound) for bound in (most, least))
    lower = False if above else True if below is False else None  # None where the two intervals overlap
    return Finding("; ".join(parts), verdict(exceeds(descent["area"], 0.5), lower))


def one_optimizer(runs: pd.DataFrame) -> Finding:
    """Whether a function gives more than half of its attention to one key does not depend on the optimiser."""
    parts, holds = [], []
    for name in ("trigger", "backcopy", "classification"):
        areas: dict[str, dict[str, tuple]] = {}
        for label, rows in by_optimizer(runs, name).items():
            for kind, row in rows[2 * rows["solved"] > rows["runs"]].iterrows():
                areas.setdefault(kind, {})[label] = row["area"]
        for kind, found in areas.items():
            if len(found) > 1:
                parts.append(f"{SCENES[name].title}, {kind}: {listed(found)}")
                above = {exceeds(value, 0.5) for value in found.values()}
                holds.append(False if above >= {True, False} else None if None in above else True)
    if not parts:
        raise LogError("no function that solves a task under several optimisers")
    return Finding("; ".join(parts), verdict(*holds))


def thresholds(runs: pd.DataFrame) -> Finding:
    """Which function has more sinks does not depend on the threshold: 0.3, 0.9 and the area order functions alike."""
    parts, holds = [], []
    for name in SCENES:
        chosen = of_scene(with_fields(runs), name)
        if not len(chosen):
            continue
        chosen = chosen[chosen["state"] == "finished"]
        chosen = chosen[chosen.groupby("attention_type")["seed"].transform("nunique") >= 3]
        if chosen["attention_type"].nunique() < 4:
            continue
        heads = heads_of(chosen, SCENES[name].sink)
        shares = profile(heads, np.array([GU, PAPERS]))
        values = pd.DataFrame({"0.3": shares[:, 0], "0.9": shares[:, 1], "area": area(heads)}, index=chosen.index)
        means = values.groupby(chosen["attention_type"]).mean()
        ranks = means.round(2).rank().corr()  # what differs by less is tied
        lowest = ranks.to_numpy()[np.triu_indices(3, 1)]
        if np.isfinite(lowest).all():
            parts.append(f"{SCENES[name].title} {lowest.min():.2f}")
            holds.append(bool(lowest.min() > 0.9))
    if not parts:
        raise LogError("no scene with four functions of three seeds or more")
    return Finding(f"smallest rank correlation of the three: {', '.join(parts)}", verdict(*holds))


HYPOTHESES: dict[str, Callable[[pd.DataFrame], Finding]] = {
    "theorem": theorem,
    "outlets": outlets,
    "gates": gates,
    "sum to one": sums_to_one,
    "no anchor": without_anchor,
    "freed": freed,
    "drains": drains,
    "descents": descents,
    "one optimiser": one_optimizer,
    "thresholds": thresholds,
}


def hypotheses(runs: pd.DataFrame) -> str:
    """Each hypothesis with what was measured and the verdict, in Markdown; LogError for a table of no runs."""
    require_columns(runs, ["task", "state", "attention_type", "seed", "lr"])
    runs, rows = with_fields(runs), []
    for hypothesis in HYPOTHESES.values():
        try:
            found = hypothesis(runs)
        except LogError as error:
            found = Finding(str(error), "not measured")
        rows.append([" ".join((hypothesis.__doc__ or "").split()), found.measured, found.verdict])
    return markdown(["hypothesis", "measured: mean [95% t interval over seeds]", "verdict"], rows)


def tables(runs: pd.DataFrame) -> str:
    """The tables of all scenes that there are runs of, and of those under several optimisers."""
    runs = with_fields(runs)
    texts = [table(runs, name) for name in summaries(runs)]
    texts += [optimizers_table(runs, name) for name in SCENES if len(by_optimizer(runs, name)) > 1]
    return "\n\n".join(texts)


def main(arguments: list[str]) -> int:
    if len(arguments) > 1 or "--help" in arguments:
        print("usage: python -m src.analysis.hypotheses [SOURCE]", file=sys.stderr)
        return 2
    prepare_streams()
    try:
        runs = load_runs(arguments[0] if arguments else SOURCES)
        texts = [hypotheses(runs), tables(runs)]
    except LogError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print("\n\n".join(texts))
    return 0


if __name__ == "__main__":
    end_quietly_with_a_pipe()
    sys.exit(main(sys.argv[1:]))
