"""Train one run, the runs of a cell, or every run of a sweep file, into the run log.

uv run python train.py                                       # the default induction run
uv run python train.py --task=classification --num_layers=1
uv run python train.py --seed="[0, 1, 2]" --lr="[1e-3, 1e-4]"    # a cell: all combinations
uv run python train.py --sweep sweeps/quick.yaml             # every run of a sweep, no account needed
uv run wandb agent ENTITY/PROJECT/SWEEP                      # the same through Weights & Biases
"""

import os
import re
import sys
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_type_hints

from tqdm import tqdm

from src import cli
from src.cli import FAILED
from src.config import STACKABLE, RunConfig, checked_list, members
from src.errors import ConfigError, LogError, require
from src.extensions import short_name
from src.runs import DEFAULT_LOG, ROOT, RunLog, load_runs
from src.runs.provenance import device_name
from src.training.cores import usable_cores
from src.training.inspection import count_unkept
from src.training.loop import (
    Observer,
    check_own_task,
    check_precision,
    choose_device,
    prepare_process,
)
from src.training.progress import PACE, ProgressBar
from src.training.stacks import check_memory, fastest_stacks, make_stacks, shape_of
from src.training.sweep import MOST, Sweep, guess_task, part_of, points_of, read_sweep, size_of
from src.training.wandb_logger import Connection, log_cell, wandb_mode, wandb_observers
from src.training.workers import Job, WorkersError, execute, run_job
from src.values import as_int, as_type, read_list, read_yaml, shown

if TYPE_CHECKING:
    import pandas as pd

SUMMARY = "Train one run, the runs of a cell, or every run of a sweep file, into the run log."
A_FEW = 1000  # runs that a dry run looks at of a sweep of too many
WORKERS_PER_CORE = 32  # more are not meant


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the command does, and what changes no result of a run.

    Args:
        sweep: W&B sweep file whose runs to train; given again, those of another one too.
        workers: Processes for a sweep or cell, by default one for each core that may be used, or one on a GPU.
        stack: auto, or how many runs of a sweep or cell train as one; auto is what fits a GPU, and on a CPU up to 8.
        shard: I/N, part I of N of a sweep's runs, for job arrays.
        best_lr: Of a sweep's learning rates only each function's best, by the mean eval/loss of its runs in the log.
        dry_run: Say what a sweep would run, what is done already, and how long the rest takes.
        log: Run log, made if missing.
        figures: Folder for a sweep's pictures.
        keep_models: Keep the trained model of each run, in logs/models or in the folder that is named.
        device: auto is cuda if there is one.
        wandb: Log to W&B too, by default under its agent, or as WANDB_MODE says.
    """

    sweep: tuple[str, ...] = field(default=(), metadata={"many": True})
    workers: int | None = None
    stack: str = "auto"
    shard: str = "1/1"
    best_lr: bool = False
    dry_run: bool = False
    log: str = str(DEFAULT_LOG)
    figures: str = str(ROOT / "logs" / "figures")
    keep_models: str | None = field(default=None, metadata={"bare": str(ROOT / "logs" / "models")})
    device: Literal["auto", "cpu", "cuda"] = "auto"
    wandb: Literal["online", "offline", "disabled"] | None = None


KINDS = get_type_hints(Options)
OPTIONS = cli.options_of(Options)
PARAMETERS = {name: option for name, option in cli.options_of(RunConfig).items() if name != "source"}
PARAMETERS |= {
    name: replace(PARAMETERS[name], about=PARAMETERS[name].about + " A list makes a cell.") for name in STACKABLE
}


def main(arguments: list[str]) -> int:
    return cli.run("train.py", command, arguments, LogError, WorkersError)


def command(arguments: list[str]) -> int:
    options, given = parse(arguments)
    if options.sweep:
        return train_sweep(options, given)
    if any(isinstance(value, list) for value in given.values()):
        return train_cell(options, given)
    return train_one(options, RunConfig.from_dict(given))


def parse(arguments: list[str]) -> tuple[Options, dict[str, Any]]:
    """The options, and the parameters of RunConfig that were given; ConfigError for what is neither."""
    given = cli.read_options("train.py", SUMMARY, OPTIONS | PARAMETERS, arguments)
    files = given.pop("sweep", [])
    files = tuple(as_type("sweep", file, str) for file in (files if isinstance(files, list) else [files]))
    options = Options(sweep=files, **{name: as_type(name, given[name], KINDS[name]) for name in given.keys() & KINDS})
    require(options.workers is None or options.workers > 0, f"workers={options.workers} must be at least 1")
    most = WORKERS_PER_CORE * usable_cores()
    require(
        (options.workers or 1) <= most,
        f"workers={options.workers} must be at most {most}, {WORKERS_PER_CORE} for each core that may be used here",
    )
    require(
        options.stack == "auto" or (as_int(options.stack) or 0) > 0,
        f"stack={shown(options.stack)} must be auto or a number of at least 1",
    )
    parameters = {name: value_or_list(name, given[name]) for name in PARAMETERS if name in given}
    return options, parameters if options.sweep else drawn_by_agent(parameters) | parameters


def value_or_list(name: str, value: Any) -> Any:
    """A parameter as what its field is; in a cell a list of such."""
    if isinstance(value, str) and value.startswith("["):
        value = read_list(name, value)
    values = checked_list(name, value)
    return list(values) if isinstance(value, list) else values[0]


def drawn_by_agent(given: dict[str, Any]) -> dict[str, Any]:
    """The parameters that W&B's agent has drawn, where one runs this: a command line of its making leaves out what is
    False, where its sweep asks for ${args_no_boolean_flags}. And the task, where its sweep names none."""
    path = os.environ.get("WANDB_SWEEP_PARAM_PATH", "")
    if not Path(path).is_file():
        return {}
    entries = {key.replace("-", "_"): entry for key, entry in read_yaml(path, "W&B's file").items()}
    drawn = {
        name: value_or_list(name, entry.get("value"))
        for name, entry in entries.items()
        if name in PARAMETERS and isinstance(entry, dict)
    }
    if "task" not in drawn | given:
        drawn["task"], note = guess_task([os.environ.get("WANDB_PROJECT", "")], drawn | given, "this sweep")
        print(note, file=sys.stderr)
    return drawn


def open_log(path: str) -> RunLog:
    try:
        return RunLog(path)
    except LogError as error:  # nothing has been started yet: a wrong input
        raise ConfigError(str(error)) from error


def train_one(options: Options, config: RunConfig) -> int:
    """Train the run, unless the log has it, and print its results; the exit status."""
    refuse(options, "shard", "best_lr", "dry_run", "figures", goes_with="--sweep")
    refuse(options, "workers", "stack", goes_with="--sweep and with lists of seeds, say")
    device, mode = choose_device(options.device), wandb_mode(options.wandb)
    check_own_task(config)
    check([[config]], device)
    models = folder_of_models(options)
    log = open_log(options.log)
    if not log.claim(config):
        print("Another process is training this run: waiting for it.", file=sys.stderr)
        log.claim(config, wait=True)
    prepare_process()
    others = wandb_observers(config, mode)
    if log.states(settled_since=log.attempts(), of=config):
        replay(log.row(config), others)
        print(f"This run is in {log.path} already, and is not repeated.")
    else:
        execute([config], log, device, [[ProgressBar(config), *others]], models)
    log.release(config)
    row = log.row(config)
    from src.analysis import report  # with pandas, slow to import: not before the run

    print(report.of_run(config, row), f"Logged in {log.path} as {config.hash}.", sep="\n")
    tell_of_models(log, [config], models)
    return 0 if row["state"] == "finished" else FAILED


def refuse(options: Options, *names: str, goes_with: str) -> None:
    """ConfigError if one of these options was given."""
    for name in names:
        require(getattr(options, name) == OPTIONS[name].default, f"--{name} goes with {goes_with}; leave it out here")


def check(stacks: list[list[RunConfig]], device: str) -> None:
    """ConfigError for stacks that this machine cannot train."""
    for stack in stacks:
        check_precision(stack[0], device)
        check_memory(stack, device)


def make_folder(name: str, path: str) -> Path:
    """The folder of an option, made if missing; ConfigError if nothing can be written there."""
    folder = Path(path).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--{name}={path} cannot be made ({error.strerror}); choose another folder") from error
    require(os.access(folder, os.W_OK), f"--{name}={path} cannot be written to; choose another folder")
    return folder


def folder_of_models(options: Options) -> Path | None:
    return None if options.keep_models is None else make_folder("keep_models", options.keep_models).resolve()


def tell_of_models(log: RunLog, configs: list[RunConfig], models: Path | None) -> None:
    """Say where the models are, and which runs have none because they had been trained without."""
    if models is None:
        return
    states = log.states()
    finished = [config for config in configs if states.get(config.hash) == "finished"]
    unkept = count_unkept(finished, models)
    print(
        f"{len(finished) - unkept} models are in {models}; src.training.inspection.trained(config, folder) loads them."
    )
    if unkept:
        print(f"{unkept} runs were in the log before, without their models: the same function trains them again.")


def replay(row: dict[str, Any], observers: list[Observer]) -> None:
    """Show observers a run that is in the log."""
    for observer in observers:
        for results in row["history"]:
            observer.on_epoch(results["epoch"], results)
        observer.on_end(row["state"], row["summary"])


def train_cell(options: Options, given: dict[str, Any]) -> int:
    """Train the runs of the cell that the log lacks, and print a table; the exit status. With W&B the cell is one
    run there, with a table of its runs."""
    refuse(options, "shard", "best_lr", "dry_run", "figures", goes_with="--sweep")
    job, workers, log = prepare(options, members(given), wandb=None)
    mode = wandb_mode(options.wandb)
    common = job.points[0].to_dict()
    connection = Connection(common | {k: v for k, v in given.items() if isinstance(v, list)}, mode) if mode else None
    watch(job, log, workers, job.points[0].title.partition(", seed")[0])
    hashes = {config.hash for config in job.points}
    if connection:
        log_cell(connection, [row for row in log.records(history=True) if row["hash"] in hashes])
    return conclude(job, log)


def train_sweep(options: Options, given: dict[str, Any]) -> int:
    """Train the runs of the sweeps that the log lacks; print a table and save pictures; the exit status."""
    sweeps = [read_sweep(file, fixed=given) for file in options.sweep]
    for sweep in sweeps:
        if sweep.note:
            print(sweep.note, file=sys.stderr)
    require(not (options.dry_run and options.best_lr), "dry_run is of a sweep as it stands; leave out best_lr")
    if options.dry_run:
        return dry_run(options, sweeps)
    points, folder = chosen_points(options, sweeps), make_folder("figures", options.figures)
    if not points:
        print(f"All runs of shard {options.shard} are runs of other shards too, which train them.")
        return 0
    title = title_of(options.sweep[0], given)
    job, workers, log = prepare(options, points, wandb=wandb_mode(options.wandb))
    watch(job, log, workers, title)
    return conclude(job, log, figures=(title, folder))


def title_of(sweep: str, given: Mapping[str, Any]) -> str:
    """What the pictures of a sweep are called: after its file and what is given beside it, of which they are a part."""
    texts = {name: "-".join(map(str, v)) if isinstance(v, list) else f"{v}" for name, v in given.items()}
    words = [short_name(v) if name in ("task", "attention_type") else f"{name}{v}" for name, v in texts.items()]
    return re.sub(r"[^\w.]+", "-", "_".join([Path(sweep).stem, *words]))[:100].strip("-")


def chosen_points(options: Options, sweeps: list[Sweep]) -> list[RunConfig]:
    """The runs of the options' part of the sweeps; where they ask for it, those at the best learning rates alone."""
    points = points_of(sweeps, options.shard)
    if not options.best_lr:
        return points
    from src.analysis.rates import points_at_best_rates  # with pandas, slow to import

    try:
        return points_at_best_rates(points, load_runs(options.log))
    except LogError as error:
        raise ConfigError(f"best_lr chooses by the runs of the log: {error}") from error


def prepare(options: Options, points: list[RunConfig], wandb: str | None) -> tuple[Job, int, RunLog]:
    """What the options ask for: the job, how many workers, and the log."""
    stacks, device, workers = plan(options, points)
    models, log = folder_of_models(options), open_log(options.log)
    fit = device == "cuda" and options.stack == "auto"
    return Job(stacks, log.path.resolve(), device, wandb, fit, models), workers, log


def plan(options: Options, points: list[RunConfig]) -> tuple[list[list[RunConfig]], str, int]:
    """The stacks of the points, the device and the number of workers."""
    device = choose_device(options.device)
    workers = options.workers or (1 if device == "cuda" else usable_cores())
    for config in {config.task: config for config in points}.values():
        check_own_task(config)
    auto = options.stack == "auto"
    stacks = fastest_stacks(points, device, workers) if auto else make_stacks(points, as_int(options.stack))
    check(stacks, device)
    return stacks, device, workers


def conclude(job: Job, log: RunLog, figures: tuple[str, Path] | None = None) -> int:
    """Print the table of the job's runs, save pictures under a title and in a folder if asked; the exit status."""
    from src.analysis import report  # with matplotlib, slow to import: not in every worker

    hashes = {config.hash for config in job.points}
    runs = load_runs(log.path, history=True)
    runs = runs[runs["hash"].isin(hashes)]
    print(report.of_sweep(runs))
    for path in report.save_figures(runs, *figures) if figures else []:
        print(path)
    tell_of_models(log, job.points, job.models)
    lost = Counter(state for state in runs["state"] if state != "finished")
    if len(runs) < len(hashes):
        lost["not trained"] = len(hashes) - len(runs)
    if lost:
        numbers = " and ".join(f"{count} {state}" for state, count in sorted(lost.items()))
        why = "; column `error` of the log says why" if runs["error"].notna().any() else ""
        print(f"Of {len(hashes)} runs {numbers}{why}", file=sys.stderr)
    return FAILED if lost else 0


def watch(job: Job, log: RunLog, workers: int, title: str) -> None:
    """Run the job, with a bar for all of it."""
    hashes = {config.hash: config.num_epochs for config in job.points}
    resumed, start = len(log.states(settled_since=job.began).keys() & hashes), time.monotonic()
    layout = "{l_bar}{bar}| {n:.1f}/{total} [{elapsed}<{remaining}{postfix}]"
    with tqdm(total=len(hashes), initial=resumed, desc=title, unit="run", bar_format=layout, **PACE) as bar:
        for _ in run_job(job, workers):
            states = {h: s for h, s in log.states(settled_since=job.began).items() if h in hashes}
            under_way = sum(e / hashes[h] for h, e in log.epochs(job.began).items() if h in hashes)
            done, ended = len(states), Counter(states.values())
            rate = 60 * (done - resumed) / (time.monotonic() - start)
            lost = f"{ended['failed']} failed, {ended['diverged']} diverged"
            bar.set_postfix_str(f"{done} done, {lost}, {resumed} resumed, {rate:.1f} runs/min", refresh=False)
            bar.update(done + under_way - bar.n)


def dry_run(options: Options, sweeps: list[Sweep]) -> int:
    """Say what would run, what is done, and how long the rest takes; of too many runs a part is looked at."""
    from src.analysis import report
    from src.training import estimate

    whole = size_of(sweeps)
    i, n = part_of(options.shard, whole)
    size = whole * i // n - whole * (i - 1) // n
    finer = 1 if size <= MOST else -(-size // A_FEW)
    points = points_of(sweeps, f"{(i - 1) * finer + 1}/{n * finer}")
    size = len(points) if finer == 1 else size  # a sweep may name a run twice
    prepare_process()
    runs = estimate.logged(options.log)
    done = set(runs["hash"][runs["state"].isin(estimate.SETTLED)])
    left = [config for config in points if config.hash not in done]
    needed = time_needed(options, left, size / len(points), runs) if left else "Nothing is to be trained."
    print(f"{size:,} runs; the first:")
    for config in points[:5]:
        print(" ", report.difference(config))
    if finer > 1:
        print(f"That is more than the {MOST:,} that are trained at once: give --shard, or a smaller one.")
    elif len(left) < size:
        print(f"{size - len(left):,} of them are in {options.log}: {len(left):,} are left.")
    print(needed)
    return 0


def time_needed(options: Options, points: list[RunConfig], times: float, runs: "pd.DataFrame") -> str:
    """How long runs take that are so many times these points, in a sentence."""
    from src.analysis import report
    from src.training import estimate

    stacks, device, workers = plan(options, points)
    known = estimate.seconds_by_shape(runs, device_name(device))
    seconds = estimate.seconds_of(stacks, known, device)
    most = workers if device == "cuda" else min(workers, usable_cores())  # further ones share cores
    at_once = most if times > 1 else min(most, len(stacks))
    needed = max(times * sum(seconds) / at_once, *seconds)
    by_log = sum(len(stack) for stack in stacks if shape_of(stack[0]) in known)
    ways = [f"the log's times of such runs ({by_log} of {len(points)})"] * (by_log > 0)
    ways += [f"a few steps of {estimate.SAMPLES} of the runs"] * (by_log < len(points))
    return f"About {report.duration(needed)} with {at_once} workers, judged by {' and '.join(ways)}."


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
