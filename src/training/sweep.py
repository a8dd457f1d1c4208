"""Sweep files: from a W&B sweep file to the runs that it asks for.

A file is read as W&B's own controller reads it. A grid's runs are not listed but counted and computed, so that a shard
of a sweep of any size costs what its own runs cost.
"""

import json
import math
import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from src.config import STACKABLE, RunConfig, check_name, checked_list, members
from src.errors import ConfigError, require
from src.tasks import TASKS
from src.training.stacks import make_stacks
from src.values import as_float, as_int, read_yaml, shown

PAPERS = ("induction", "classification")  # a file of others that names no task is of one of the paper's
MOST = 100_000  # runs that are listed at once: a config and its hash take about 0.1 ms and 2 kB
Draw = Callable[[np.random.Generator], Any]

# How each distribution of W&B's draws a value, of the numbers that it needs, in order.
DISTRIBUTIONS: dict[str, tuple[tuple[str, ...], Callable[..., Any]]] = {
    "uniform": (("min", "max"), lambda rng, low, high: rng.uniform(low, high)),
    "int_uniform": (("min", "max"), lambda rng, low, high: int(rng.integers(int(low), int(high), endpoint=True))),
    "log_uniform": (("min", "max"), lambda rng, low, high: math.exp(rng.uniform(low, high))),
    "log_uniform_values": (("min", "max"), lambda rng, low, high: math.exp(rng.uniform(math.log(low), math.log(high)))),
    "inv_log_uniform": (("min", "max"), lambda rng, low, high: math.exp(-rng.uniform(low, high))),
    "inv_log_uniform_values": (
        ("min", "max"),
        lambda rng, low, high: math.exp(-rng.uniform(-math.log(high), -math.log(low))),
    ),
    "normal": (("mu", "sigma"), lambda rng, mu, sigma: rng.normal(mu, sigma)),
    "log_normal": (("mu", "sigma"), lambda rng, mu, sigma: rng.lognormal(mu, sigma)),
    "beta": (("a", "b"), lambda rng, a, b: rng.beta(a, b)),
}
QUANTISED = [f"q_{name}" for name in DISTRIBUTIONS if name != "int_uniform"]
GIVEN = ("constant", "categorical", "categorical_w_probabilities")  # one value, or some values
DEFAULTS = {"mu": 0.0, "sigma": 1.0, "q": 1}  # of what a description may leave out


@dataclass(frozen=True)
class Sweep:
    """What a sweep file asks for.

    Args:
        path: The file.
        method: grid, or random.
        parameters: For each field of RunConfig that the sweep sets, W&B's description of its values.
        run_cap: How many of its points are run at most; a random sweep draws that many.
        note: What had to be assumed, in a sentence.
    """

    path: str
    method: str
    parameters: Mapping[str, Mapping[str, Any]]
    run_cap: int | None = None
    note: str | None = None

    @cached_property
    def points_of_grid(self) -> dict[str, Sequence[Any]]:
        """For each parameter by name, the values or cells (lists) that its points have."""
        return {name: grid_values(name, self.parameters[name]) for name in sorted(self.parameters)}

    @cached_property
    def axes(self) -> dict[str, Sequence[Any]]:
        """For each parameter by name, the distinct values that the runs of a grid have, those of its cells too."""
        return {
            name: values if isinstance(values, range) else flat(values) for name, values in self.points_of_grid.items()
        }

    @property
    def is_listed(self) -> bool:
        """Whether the runs are no whole grid, and known only once they are listed."""
        points = math.prod(map(len_of, self.points_of_grid.values())) if self.method == "grid" else math.inf
        return self.run_cap is not None and self.run_cap < points

    @cached_property
    def size(self) -> int:
        """The number of runs; where the file names one run in two ways (null and the default), at most so many."""
        return len(self._listed) if self.is_listed else math.prod(map(len_of, self.axes.values()))

    def points(self, which: str = "1/1") -> list[RunConfig]:
        """The runs of part i of n of this sweep alone; see `points_of`."""
        return points_of([self], which)

    def at(self, places: range) -> list[RunConfig]:
        """The distinct runs at places of the order that shards are cut from, in the sweep's order: parameters by name,
        the last one varies fastest. ConfigError for the first that is none."""
        if self.is_listed:
            part = {self._mixed[place] for place in places}
            return [config for name, config in self._listed.items() if name in part]
        configs = map(self._run, sorted(map(self._index, places)))
        return [config for config in configs if config is not None]

    def __contains__(self, config: RunConfig) -> bool:
        """Whether this is a run of the sweep, without listing those of a grid."""
        if self.is_listed:
            return config.hash in self._listed
        fields = {name: getattr(config, name) for name in self.axes}
        values = {name: value if is_among(self.axes[name], value) else None for name, value in fields.items()}
        return all(is_among(self.axes[k], v) for k, v in values.items()) and RunConfig.from_dict(values) == config

    def _index(self, place: int) -> int:
        """Which run of the grid stands at a place of the order that shards are cut from: shape after shape, far from
        each other, each with all its STACKABLE values."""
        # by name, so that aux_loss_weight varies slowest: runs without it are stacks of their own
        members = {name: values for name, values in self.axes.items() if name in STACKABLE}
        shapes = {name: values for name, values in self.axes.items() if name not in STACKABLE}
        num_members, num_shapes = (math.prod(map(len_of, axes.values())) for axes in (members, shapes))
        shape, member = place // num_members * far(num_shapes) % num_shapes, place % num_members
        digits = digits_of(shapes, shape) | digits_of(members, member)
        index = 0
        for name, values in self.axes.items():
            index = index * len_of(values) + digits[name]
        return index

    def _run(self, index: int) -> RunConfig | None:
        """Run `index` of the grid; None where a value (null) becomes another one of the same axis (the default)."""
        values = chosen(self.axes, digits_of(self.axes, index))
        config = RunConfig.from_dict(values)
        become = {name: getattr(config, name) for name in values}
        return None if any(become[k] != v and become[k] in self.axes[k] for k, v in values.items()) else config

    @cached_property
    def _listed(self) -> dict[str, RunConfig]:
        """The runs by their hashes."""
        require(
            self.run_cap <= MOST,
            f"run_cap={self.run_cap} of {self.path} is more than the {MOST:,} runs that are trained at once; lower it",
        )
        points = self._first_of_grid() if self.method == "grid" else self._random()
        configs = (config for values in points for config in members(values))
        return {config.hash: config for config in configs}

    @cached_property
    def _mixed(self) -> list[str]:
        """The hashes of the listed runs in the order that shards are cut from."""
        stacks = sorted(make_stacks(list(self._listed.values()), None), key=lambda stack: stack[0].hash)
        return [config.hash for stack in stacks for config in stack]

    def _first_of_grid(self) -> Iterator[dict[str, Any]]:
        for index in range(self.run_cap):
            yield chosen(self.points_of_grid, digits_of(self.points_of_grid, index))

    def _random(self) -> Iterator[dict[str, Any]]:
        """Drawn from a stream that depends on the parameters alone, so that a second start draws the same."""
        draws = {name: drawing(name, spec) for name, spec in sorted(self.parameters.items())}
        text = json.dumps(self.parameters, sort_keys=True, default=str)
        rng = np.random.default_rng(zlib.crc32(text.encode()))
        for _ in range(self.run_cap):
            yield {name: draw(rng) for name, draw in draws.items()}


def read_sweep(path: Path | str, fixed: Mapping[str, Any] | None = None) -> Sweep:
    """Read a W&B sweep file; `fixed` replaces parameters by single values.

    Raises ConfigError if the file cannot be read or is no sweep that can be run locally.
    """
    content = read_yaml(path, "the sweep file")
    method, parameters = content.get("method"), content.get("parameters")
    require(
        method in ("grid", "random"),
        f"method={shown(method)} of {path} cannot be run locally; use grid or random, or `wandb agent`",
    )
    require(
        isinstance(parameters, dict) and bool(parameters),
        f"the sweep file {path} has no parameters; give some, such as `parameters: {{lr: {{values: [0.001, 0.01]}}}}`",
    )
    described = {}
    for name, spec in parameters.items():
        field = name.replace("-", "_") if isinstance(name, str) else name
        require(field not in described, f"{field} is there twice in {path}, with hyphens and without")
        try:
            check_name(field)
            require(field != "source", "source is no parameter of a run; it is filled in")
            distribution_of(field, spec)  # refuses what is none
        except ConfigError as error:
            raise ConfigError(f"the sweep file {path}: {error}") from error
        described[field] = spec
    run_cap = content.get("run_cap")
    require(
        (run_cap is None and method == "grid") or (as_int(run_cap) or 0) > 0,
        f"run_cap={shown(run_cap)} of {path} must be the number of runs to {'draw' if method == 'random' else 'do'}"
        + ("; method=random never ends by itself" if method == "random" else ""),
    )
    described |= {name: {"value": value} for name, value in (fixed or {}).items()}
    check_command(content, path)
    notes = []
    if "task" not in described:
        texts = [str(content.get(name, "")) for name in ("program", "name", "project")]
        task, note = guess_task([*texts, Path(path).stem], described, str(path))
        described["task"] = {"value": task}
        notes.append(note)
    if content.get("early_terminate"):
        notes.append(f"early_terminate of {path} is W&B's: here each run is trained to its end")
    return Sweep(str(path), method, described, None if run_cap is None else as_int(run_cap), "; ".join(notes) or None)


def check_command(content: Mapping[str, Any], path: Path | str) -> None:
    """ConfigError where the command of W&B's agent passes more than the parameters to the program: other runs than
    those that would be trained here."""
    command = content.get("command") or []
    require(isinstance(command, list), f"command={shown(command)} of {path} must be a list of words")
    words = list(map(str, command))
    programs = ("${program}", content.get("program"))
    program = next((i for i, word in enumerate(words) if word in programs or word.endswith(".py")), 0)
    passed = [word for word in words[program + 1 :] if not re.fullmatch(r"\$\{\w+\}", word)]
    require(
        not passed,
        f"the command of {path} passes {shown(passed)} to the program, which W&B's agent alone does; move it to "
        "the file's parameters, or to this command line",
    )


def guess_task(texts: Sequence[str], parameters: Mapping[str, Any], what: str) -> tuple[str, str]:
    """The task of a sweep that names none, and how it was found out, in a sentence about `what`; ConfigError where that
    is uncertain. `texts` may have a task's name in them: the program, the file."""
    tasks = {name: TASKS[name] for name in PAPERS}
    named = [name for name in tasks if any(name in text.lower() for text in texts)]
    varied = {field for task in tasks.values() for field in task.settings} & parameters.keys()
    optional = {field for task in tasks.values() for field in task.defaults} & parameters.keys()
    able = [name for name in named or tasks if optional <= tasks[name].defaults.keys()]
    usual = [name for name in able if varied <= set(tasks[name].settings)]
    if len(named) == 1 and able:
        return named[0], f"{what} names no task: {named[0]}, by its program or its own name"
    if len(able) == 1:
        return able[0], f"{what} names no task: {able[0]}, which alone has {', '.join(sorted(optional))}"
    if RunConfig.task in usual:
        return RunConfig.task, f"{what} names no task: {RunConfig.task}, the default"
    hint = f" ({', '.join(sorted(varied))} are what sweeps of {' or '.join(usual)} vary)" if usual else ""
    raise ConfigError(f"{what} names no task{hint}; add `task: {{value: NAME}}` to its parameters, or give --task=NAME")


# One parameter


def distribution_of(name: str, spec: Any) -> str:
    """The name of the distribution that W&B's description of a parameter is of; ConfigError if it is of none."""
    require(
        isinstance(spec, dict) and bool(spec.keys() & {"value", "values", "min", "max", "distribution"}),
        f"parameter {name} needs value, values, or min and max, such as {name}: {{values: [A, B]}}",
    )
    distribution = spec.get("distribution", usual_distribution(spec))
    known = [*GIVEN, *DISTRIBUTIONS, *QUANTISED]
    require(
        isinstance(distribution, str) and distribution in known,
        f"parameter {name} has distribution={shown(distribution)}, which is unknown; choose one of {', '.join(known)}",
    )
    needed = numbers_of(distribution)
    missing = [key for key in needed if key not in spec and key not in DEFAULTS]
    require(not missing, f"parameter {name} with distribution={distribution} lacks {', '.join(missing)}")
    others = sorted(map(shown, spec.keys() - {*needed, "distribution"}))
    require(not others, f"parameter {name} with distribution={distribution} has no use for {', '.join(others)}")
    return distribution


def usual_distribution(spec: Mapping[str, Any]) -> str:
    """The distribution of a description that names none."""
    if "value" in spec:
        return "constant"
    if "values" in spec:
        return "categorical_w_probabilities" if "probabilities" in spec else "categorical"
    return "int_uniform" if type(spec.get("min")) is type(spec.get("max")) is int else "uniform"


def numbers_of(distribution: str) -> tuple[str, ...]:
    """The keys of W&B's description that a distribution is made of."""
    if distribution in GIVEN:
        return {"constant": ("value",), "categorical": ("values",)}.get(distribution, ("values", "probabilities"))
    keys, _ = DISTRIBUTIONS[distribution.removeprefix("q_")]
    return (*keys, "q") if distribution.startswith("q_") else keys


def grid_values(name: str, spec: Mapping[str, Any]) -> Sequence[Any]:
    """The values of one parameter in a grid, or its cells, checked and without repeats; of a range of whole numbers
    its ends alone are checked."""
    distribution = distribution_of(name, spec)
    if distribution in ("constant", "categorical"):
        values = [spec["value"]] if "value" in spec else spec["values"]
        require(isinstance(values, list) and bool(values), f"values of {name} must be a list that is not empty")
        cells = dict.fromkeys(checked_list(name, value) for value in values)
        return [cell[0] if len(cell) == 1 else list(cell) for cell in cells]
    require(
        distribution in ("int_uniform", "q_uniform"),
        f"parameter {name} of a grid needs value, values, or min and max that are whole numbers or have "
        f"distribution=q_uniform; {distribution} is for method=random",
    )
    low, high, *q = finite_numbers(name, spec, distribution)
    if distribution == "int_uniform":
        for end in (low, high):
            checked_list(name, int(end))
        return range(int(low), int(high) + 1)
    require((high - low) / q[0] <= MOST, f"parameter {name} has more than {MOST:,} values; raise q={q[0]}")
    return list(dict.fromkeys(checked_list(name, value)[0] for value in np.arange(low, high, q[0]).tolist()))


def finite_numbers(name: str, spec: Mapping[str, Any], distribution: str) -> list[float | int]:
    """The numbers that a distribution is made of, in order; ConfigError where it cannot be of these."""
    given = {key: spec.get(key, DEFAULTS.get(key)) for key in numbers_of(distribution)}
    as_number = as_int if distribution == "int_uniform" else as_float
    numbers = {key: value if type(value) is int else as_number(value) for key, value in given.items()}
    article = "whole number" if distribution == "int_uniform" else "number"
    for key, value in numbers.items():
        require(
            value is not None and abs(value) < 2**63,
            f"{key}={shown(given[key])} of {name} must be a {article} below 2**63",
        )
        positive = key in ("q", "a", "b") or (key == "min" and distribution.endswith("_values"))
        require(not positive or value > 0, f"{key}={value} of {name} must be above 0 with {distribution}")
        require(key != "sigma" or value >= 0, f"sigma={value} of {name} must be at least 0")
        power = distribution.endswith("log_uniform") and abs(value) > 700
        require(not power, f"{key}={value} of {name} is too large: {distribution} draws e to that power")
    if "min" in numbers:
        low, high = numbers["min"], numbers["max"]
        require(low <= high, f"min={low} of {name} is more than max={high}; exchange them")
    return list(numbers.values())


def drawing(name: str, spec: Mapping[str, Any]) -> Draw:
    """How a value of one parameter of a random sweep is drawn, by W&B's distributions."""
    distribution = distribution_of(name, spec)
    if distribution == "constant":
        return lambda rng: spec["value"]
    if distribution in GIVEN:
        values, probabilities = spec["values"], spec.get("probabilities")
        grid_values(name, {"values": values})  # checks them
        check_probabilities(name, values, probabilities)
        return lambda rng: values[rng.choice(len(values), p=probabilities)]
    numbers = finite_numbers(name, spec, distribution)
    keys, draw = DISTRIBUTIONS[distribution.removeprefix("q_")]
    if not distribution.startswith("q_"):
        return lambda rng: draw(rng, *numbers)
    q = numbers[-1]
    return lambda rng: quantised(name, draw(rng, *numbers[:-1]), q)


def quantised(name: str, value: float, q: float) -> float:
    """The multiple of q that is nearest."""
    require(math.isfinite(value / q), f"parameter {name} was drawn as {value}; lower its sigma or max")
    return round(value / q) * q


def check_probabilities(name: str, values: Sequence[Any], probabilities: Any) -> None:
    try:
        np.random.default_rng(0).choice(len(values), p=probabilities)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"probabilities of {name} do not fit its values: {error}") from error


def flat(cells: Sequence[Any]) -> list[Any]:
    """The distinct values of points, some of which are lists."""
    return list(dict.fromkeys(value for cell in cells for value in (cell if isinstance(cell, list) else [cell])))


# Parts


def points_of(sweeps: Sequence[Sweep], which: str = "1/1") -> list[RunConfig]:
    """The distinct runs of part i of n of some sweeps, one after another, for `which` = "i/n" with i from 1 to n.

    The parts cover the sweeps and do not overlap: a run of several sweeps is one of the first. They are of one length,
    up to one run and such repeats. They depend on nothing but the sweeps, so that the shards of a sweep may train on
    different machines. Runs that can be one stack stay together, but where a part ends in their midst; shapes are
    mixed, so that parts take about as long as each other.

    Raises ConfigError for a part that there is not, for one of too many runs, and for the first run that is none.
    """
    size = size_of(sweeps)
    i, n = part_of(which, size)
    start, stop = size * (i - 1) // n, size * i // n
    require(
        stop - start <= MOST,
        f"{', '.join(sweep.path for sweep in sweeps)} asks for {size:,} runs, of which at most {MOST:,} are trained at "
        f"once; give --shard=1/{-(-size // MOST)} (then 2/..., and so on), or a run_cap in the file",
    )
    configs = []
    for k, sweep in enumerate(sweeps):
        part = sweep.at(range(min(max(start, 0), sweep.size), min(max(stop, 0), sweep.size)))
        configs += [config for config in part if not any(config in earlier for earlier in sweeps[:k])]
        start, stop = start - sweep.size, stop - sweep.size
    return configs


def size_of(sweeps: Sequence[Sweep]) -> int:
    return sum(sweep.size for sweep in sweeps)


def part_of(which: str, size: int) -> tuple[int, int]:
    """i and n of "i/n"; ConfigError if there is no such part of `size` runs."""
    match = re.fullmatch(r"([0-9]{1,18})/([0-9]{1,18})", which)
    i, n = map(int, match.groups()) if match else (0, 0)
    require(1 <= i <= n, f"shard={shown(which)} must be i/n with i from 1 to n, like 1/4")
    require(n <= size, f"shard={which} asks for more parts than the sweep has runs; use at most {size} parts")
    return i, n


def digits_of(axes: Mapping[str, Sequence[Any]], index: int) -> dict[str, int]:
    """Which value each axis has in combination `index` of all, of which the last axis varies fastest."""
    digits = {}
    for name in reversed(axes):
        index, digits[name] = divmod(index, len_of(axes[name]))
    return digits


def chosen(axes: Mapping[str, Sequence[Any]], digits: Mapping[str, int]) -> dict[str, Any]:
    return {name: values[digits[name]] for name, values in axes.items()}


def far(size: int) -> int:
    """A step by which one comes to each of `size` places, neighbours far from each other: about the golden ratio."""
    step = round(size * 0.6180339887498949)
    while math.gcd(step, size) != 1:
        step += 1
    return step


def is_among(values: Sequence[Any], value: Any) -> bool:
    """Whether it is one of them; Python would look through a range, however long, for what is no int."""
    if isinstance(values, range):
        value = as_int(value)
        return value is not None and value in values
    return value in values


def len_of(values: Sequence[Any]) -> int:
    """Its length; Python's `len` refuses ranges beyond 2**63."""
    return (values.stop - values.start) if isinstance(values, range) else len(values)
