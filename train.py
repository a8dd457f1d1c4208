"""Train one run, the runs of a cell, or every run of a sweep file, into the run log.

uv run python train.py                                       # the default induction run
uv run python train.py --task=classification --num_layers=1
uv run python train.py --seed="[0, 1, 2]" --lr="[1e-3, 1e-4]"    # a cell: all combinations
uv run python train.py --sweep sweeps/quick.yaml             # every run of a sweep, no account needed
uv run wandb agent ENTITY/PROJECT/SWEEP                      # the same through Weights & Biases
"""

import difflib
import re
import shlex
import signal
import sys
import time
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml
from jsonargparse import ArgumentError, ArgumentParser, Namespace
from tqdm import tqdm

from src.config import FIELD_TYPES, FIELDS, STACKABLE, ConfigError, RunConfig, as_type, checked_list, members, require
from src.runs import DEFAULT_LOG, LogError, RunLog, load_runs
from src.training.cores import usable_cores
from src.training.loop import (
    Observer,
    check_own_task,
    check_precision,
    choose_device,
    estimate_seconds,
    prepare_process,
)
from src.training.progress import PACE, ProgressBar
from src.training.stacks import fastest_stacks, make_stacks
from src.training.sweep import read_sweep, shard
from src.training.wandb_logger import Connection, log_cell, wandb_mode, wandb_observers
from src.training.workers import Job, WorkersError, execute, run_job

SUMMARY = __doc__.splitlines()[0]
OPTION_TYPES = {
    "workers": int | None,
    "device": Literal["auto", "cpu", "cuda"],
    "wandb": Literal["online", "offline", "disabled"] | None,
}
FAILED, BAD_INPUT, INTERRUPTED = 1, 2, 130  # exit statuses


def main(arguments: list[str]) -> int:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the end of a job's time is a Ctrl-C
    try:
        options, given = parse(arguments)
        if options.sweep is not None:
            return train_sweep(options, given)
        if any(isinstance(value, list) for value in given.values()):
            return train_cell(options, given)
        return train_one(options, RunConfig.from_dict(given))
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT
    except (LogError, WorkersError) as error:
        print(f"error: {error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        again = shlex.join(["uv", "run", "python", "train.py", *arguments])
        print(f"\nStopped. What is logged stays; the same command goes on: {again}", file=sys.stderr)
        return INTERRUPTED


def make_parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="train.py",
        usage="train.py [--NAME=VALUE ...]",
        description=SUMMARY,
        exit_on_error=False,
        allow_abbrev=False,
    )
    parser.add_argument("--config", action="config", help="YAML file of parameters")
    parser.add_argument("--sweep", metavar="FILE", help="W&B sweep file whose runs to train")
    parser.add_argument(
        "--workers",
        type=OPTION_TYPES["workers"],
        help="processes for a sweep (default: one for each core that this process may use, one on a GPU)",
    )
    parser.add_argument(
        "--stack",
        default="auto",
        metavar="auto|N",
        help="how many runs of a sweep or cell train as one (default: on a GPU what fits, on a CPU 8 or 1)",
    )
    parser.add_argument("--shard", default="1/1", metavar="I/N", help="part I of N of a sweep's runs, for job arrays")
    parser.add_argument("--dry_run", action="store_true", help="say what a sweep would run, and for how long")
    parser.add_argument("--log", default=str(DEFAULT_LOG), metavar="FILE", help="run log, made if missing")
    parser.add_argument("--figures", metavar="FOLDER", help="for a sweep's pictures (default: visualizations/fig)")
    parser.add_argument("--device", type=OPTION_TYPES["device"], default="auto", help="auto: cuda if there")
    parser.add_argument(
        "--wandb",
        type=OPTION_TYPES["wandb"],
        help="log to W&B too (default: under its agent, or as WANDB_MODE says)",
    )
    parser.add_class_arguments(RunConfig, skip={*STACKABLE, "source"})
    for name in STACKABLE:
        kind, default = FIELD_TYPES[name], FIELDS[name].default
        about = re.search(f"{name}: (.*)", RunConfig.__doc__)[1]
        parser.add_argument(f"--{name}", type=kind | list, default=default, help=f"{about} A list makes a cell.")
    return parser


def parse(arguments: list[str]) -> tuple[Namespace, dict[str, Any]]:
    """The options, and the parameters of RunConfig that were given; ConfigError for what is neither."""
    # where YAML has null, W&B's agent passes None
    arguments = [re.sub("=None$", "=null", argument) for argument in arguments]
    parser = make_parser()
    try:
        options = parser.parse_args(arguments)
        given = parser.parse_args(arguments, defaults=False)
    except ArgumentError as error:
        raise explained(error, list(vars(parser.get_defaults()))) from error
    require(options.workers is None or options.workers > 0, f"workers={options.workers} must be at least 1")
    require(
        options.stack == "auto" or (options.stack.isdecimal() and int(options.stack) > 0),
        f"stack={options.stack} must be auto or a number of at least 1",
    )
    return options, {name: value for name, value in vars(given).items() if name in FIELDS}


def explained(error: ArgumentError, known: list[str]) -> ConfigError:
    """The parser's error in one sentence."""
    text = " ".join(str(error).split())
    if unknown := re.search(r"[Uu]nrecognized arguments: --(\w+)|Option '(\w+)' is not accepted", text):
        name = next(filter(None, unknown.groups()))
        near = difflib.get_close_matches(name, known, n=1)
        return ConfigError(f"{name} is no option; " + (f"did you mean {near[0]}?" if near else "see --help"))
    if 'key "config"' in text or "Unexpected config" in text:
        return ConfigError(f"--config needs a YAML file of parameters: {text:.200}")
    key, value = re.search('key "(\\w+)"', text), re.search("(?:Got|Given) value: (.*?)$", text)
    if key and value:
        name, value = key[1], value[1]
        try:
            value = yaml.safe_load(value)
        except yaml.YAMLError:
            return ConfigError(f"{name}={value} is not valid YAML; see --help")
        try:
            checked_list(name, value) if name in FIELDS else as_type(name, value, OPTION_TYPES[name])
        except ConfigError as better:
            return better
        return ConfigError(f"{name}={value} is not of the right kind; see --help")
    return ConfigError(text)


def open_log(path: str) -> RunLog:
    try:
        return RunLog(path)
    except LogError as error:  # nothing has been started yet: a wrong input
        raise ConfigError(str(error)) from error


def train_one(options: Namespace, config: RunConfig) -> int:
    """Train the run, unless the log has it, and print its results; the exit status."""
    refuse(options, "shard", "dry_run", "figures", goes_with="--sweep")
    refuse(options, "workers", "stack", goes_with="--sweep and with lists of seeds, say")
    device, mode = choose_device(options.device), wandb_mode(options.wandb)
    check_precision(config, device)
    check_own_task(config)
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
        execute([config], log, device, [[ProgressBar(config), *others]])
    log.release(config)
    row = log.row(config)
    from src.analysis import report  # with pandas, slow to import: not before the run

    print(report.of_run(config, row), f"Logged in {log.path} as {config.hash}.", sep="\n")
    return 0 if row["state"] == "finished" else FAILED


def refuse(options: Namespace, *names: str, goes_with: str) -> None:
    """ConfigError if one of these options was given."""
    defaults = make_parser().get_defaults()
    for name in names:
        require(options[name] == defaults[name], f"--{name} goes with {goes_with}; leave it out here")


def replay(row: dict[str, Any], observers: list[Observer]) -> None:
    """Show observers a run that is in the log."""
    for observer in observers:
        for results in row["history"]:
            observer.on_epoch(results["epoch"], results)
        observer.on_end(row["state"], row["summary"])


def train_cell(options: Namespace, given: dict[str, Any]) -> int:
    """Train the runs of the cell that the log lacks, and print a table; the exit status. With W&B the cell is one
    run there, with a table of its runs."""
    refuse(options, "shard", "dry_run", "figures", goes_with="--sweep")
    job, workers, log = prepare(options, members(given), wandb=None)
    mode = wandb_mode(options.wandb)
    common = job.points[0].to_dict()
    connection = Connection(common | {k: v for k, v in given.items() if isinstance(v, list)}, mode) if mode else None
    watch(job, log, workers, job.points[0].title.partition(", seed")[0])
    hashes = {config.hash for config in job.points}
    if connection:
        log_cell(connection, [row for row in log.records(history=True) if row["hash"] in hashes])
    return conclude(job, log)


def train_sweep(options: Namespace, given: dict[str, Any]) -> int:
    """Train the runs of the sweep that the log lacks; print a table and save pictures; the exit status."""
    points = read_sweep(options.sweep, fixed=given).points()
    if options.dry_run:
        return dry_run(options, points)
    job, workers, log = prepare(options, points, wandb=wandb_mode(options.wandb))
    watch(job, log, workers, Path(options.sweep).stem)
    return conclude(job, log, figures=(Path(options.sweep).stem, options.figures))


def prepare(options: Namespace, points: list[RunConfig], wandb: str | None) -> tuple[Job, int, RunLog]:
    """What the options ask for: the job, how many workers, and the log."""
    stacks, device, workers = plan(options, points)
    log = open_log(options.log)
    fit = device == "cuda" and options.stack == "auto"
    return Job(stacks, log.path.resolve(), device, wandb, fit), workers, log


def plan(options: Namespace, points: list[RunConfig]) -> tuple[list[list[RunConfig]], str, int]:
    """This shard's stacks, the device and the number of workers."""
    device, points = choose_device(options.device), shard(points, options.shard)
    auto = options.stack == "auto"
    stacks = fastest_stacks(points, device) if auto else make_stacks(points, int(options.stack))
    for stack in stacks:
        check_precision(stack[0], device)
    for config in {stack[0].task: stack[0] for stack in stacks}.values():
        check_own_task(config)
    return stacks, device, options.workers or (1 if device == "cuda" else usable_cores())


def conclude(job: Job, log: RunLog, figures: tuple[str, str | None] | None = None) -> int:
    """Print the table of the job's runs, save pictures under a title and in a folder if asked; the exit status."""
    from src.analysis import report  # with matplotlib, slow to import: not in every worker

    hashes = [config.hash for config in job.points]
    runs = load_runs(log.path, history=True)
    runs = runs[runs["hash"].isin(hashes)]
    print(report.of_sweep(runs))
    for path in report.save_figures(runs, *figures) if figures else []:
        print(path)
    failed = int((runs["state"] == "failed").sum())
    if failed:
        print(f"{failed} of {len(hashes)} runs failed; column `error` of the log says why", file=sys.stderr)
    return FAILED if failed else 0


def watch(job: Job, log: RunLog, workers: int, title: str) -> None:
    """Run the job, with a bar for all of it."""
    hashes = {config.hash: config.num_epochs for config in job.points}
    resumed, start = len(log.states(settled_since=job.began).keys() & hashes), time.monotonic()
    layout = "{l_bar}{bar}| {n:.1f}/{total} [{elapsed}<{remaining}{postfix}]"
    with tqdm(total=len(hashes), initial=resumed, desc=title, unit="run", bar_format=layout, **PACE) as bar:
        for _ in run_job(job, workers):
            states = {h: s for h, s in log.states(settled_since=job.began).items() if h in hashes}
            under_way = sum(e / hashes[h] for h, e in log.epochs(job.began).items() if h in hashes)
            done, failed = len(states), sum(state != "finished" for state in states.values())
            rate = 60 * (done - resumed) / (time.monotonic() - start)
            bar.set_postfix_str(f"{done} done, {failed} failed, {resumed} resumed, {rate:.1f} runs/min", refresh=False)
            bar.update(done + under_way - bar.n)


def dry_run(options: Namespace, points: list[RunConfig]) -> int:
    from src.analysis import report

    stacks, device, workers = plan(options, points)
    prepare_process()
    print(f"{sum(map(len, stacks))} runs; the first:")
    for config in [config for stack in stacks for config in stack][:5]:
        print(" ", report.difference(config))
    sample = [stacks[i] for i in np.linspace(0, len(stacks) - 1, 4, dtype=int)]
    seconds = np.mean([estimate_seconds(stack, device) for stack in sample]) * len(stacks)
    print(f"About {report.duration(seconds / workers)} with {workers} workers, judged by a few steps of 4 of the runs.")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
