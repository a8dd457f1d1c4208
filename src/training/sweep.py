"""Sweep files: from a W&B sweep file to the runs that it asks for, in W&B's order."""

import itertools
import json
import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from src.config import ConfigError, RunConfig, check_name, checked_list, members, require
from src.training.stacks import make_stacks


@dataclass(frozen=True)
class Sweep:
    """What a sweep file asks for.

    Args:
        method: grid, or random.
        parameters: For each field of RunConfig that the sweep sets, W&B's description of its values.
        run_cap: How many runs a random sweep draws.
    """

    method: str
    parameters: Mapping[str, Mapping[str, Any]]
    run_cap: int | None = None

    def points(self) -> list[RunConfig]:
        """The distinct runs of the sweep; where its points are cells (lists of seeds, say), the runs of each.
        ConfigError names the first point that is no valid run."""
        chosen = self._grid() if self.method == "grid" else self._random()
        configs = (config for values in chosen for config in members(values))
        return list({config.hash: config for config in configs}.values())

    def _grid(self):
        """W&B's order: parameters by name, the last one varies fastest."""
        names = sorted(self.parameters)
        for values in itertools.product(*(grid_values(name, self.parameters[name]) for name in names)):
            yield dict(zip(names, values, strict=True))

    def _random(self):
        """Drawn from a stream that depends on the parameters alone, so that a second start draws the same."""
        text = json.dumps(self.parameters, sort_keys=True)
        rng = np.random.default_rng(zlib.crc32(text.encode()))
        for _ in range(self.run_cap):
            yield {name: draw(name, spec, rng) for name, spec in sorted(self.parameters.items())}


def read_sweep(path: Path | str, fixed: Mapping[str, Any] | None = None) -> Sweep:
    """Read a W&B sweep file; `fixed` replaces parameters by single values.

    Raises ConfigError if the file cannot be read or is no sweep that can be run locally.
    """
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the sweep file {path}: {error}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"the sweep file {path} is not valid YAML: {' '.join(str(error).split())}") from error
    require(
        isinstance(content, dict),
        f"the sweep file {path} is empty or no mapping; it needs method and parameters",
    )
    method, parameters = content.get("method"), content.get("parameters")
    require(
        method in ("grid", "random"),
        f"method={method} of {path} cannot be run locally; use grid or random, or `wandb agent`",
    )
    require(isinstance(parameters, dict) and bool(parameters), f"the sweep file {path} has no parameters")
    for name, spec in parameters.items():
        check_name(name)
        known = isinstance(spec, dict) and spec.keys() & {"value", "values", "min", "max", "distribution"}
        require(bool(known), f"parameter {name} of {path} needs value, values, or min and max")
    run_cap = content.get("run_cap")
    require(
        method == "grid" or (isinstance(run_cap, int) and run_cap > 0),
        f"method=random never ends by itself: give {path} a run_cap, the number of runs to draw",
    )
    fixed = {name: {"value": value} for name, value in (fixed or {}).items()}
    return Sweep(method, parameters | fixed, run_cap)


def grid_values(name: str, spec: Mapping[str, Any]) -> list[Any]:
    """The values of one parameter in a grid, checked and without repeats."""
    if "value" in spec:
        values = [spec["value"]]
    elif "values" in spec:
        values = spec["values"]
        require(isinstance(values, list) and bool(values), f"values of {name} must be a list that is not empty")
    elif isinstance(spec.get("min"), int) and isinstance(spec.get("max"), int):
        values = range(spec["min"], spec["max"] + 1)
    else:
        raise ConfigError(f"parameter {name} of a grid needs value, values, or whole numbers min and max")
    cells = dict.fromkeys(checked_list(name, value) for value in values)
    return [cell[0] if len(cell) == 1 else list(cell) for cell in cells]


def draw(name: str, spec: Mapping[str, Any], rng: np.random.Generator) -> Any:
    """One value of a parameter of a random sweep, by W&B's distributions."""
    if "value" in spec:
        return spec["value"]
    if "values" in spec:
        grid_values(name, spec)  # checks them
        try:
            return spec["values"][rng.choice(len(spec["values"]), p=spec.get("probabilities"))]
        except (TypeError, ValueError) as error:
            raise ConfigError(f"probabilities of {name} do not fit its values: {error}") from error
    low, high, q = spec.get("min"), spec.get("max"), spec.get("q", 1)
    whole = isinstance(low, int) and isinstance(high, int)
    distribution = spec.get("distribution", "int_uniform" if whole else "uniform")
    quantised = distribution.startswith("q_")
    try:
        value = DISTRIBUTIONS[distribution.removeprefix("q_")](spec, rng)
    except KeyError as error:
        raise ConfigError(
            f"parameter {name} has distribution={distribution}, which is unknown or lacks {error}; known are "
            f"{', '.join(DISTRIBUTIONS)}, and min and max bound them"
        ) from error
    except (TypeError, ValueError) as error:
        raise ConfigError(f"parameter {name} cannot be drawn from min={low}, max={high}: {error}") from error
    return round(value / q) * q if quantised else value


DISTRIBUTIONS = {
    "uniform": lambda s, rng: rng.uniform(s["min"], s["max"]),
    "int_uniform": lambda s, rng: int(rng.integers(s["min"], s["max"], endpoint=True)),
    "log_uniform": lambda s, rng: math.exp(rng.uniform(s["min"], s["max"])),
    "log_uniform_values": lambda s, rng: math.exp(rng.uniform(math.log(s["min"]), math.log(s["max"]))),
    "inv_log_uniform_values": lambda s, rng: 1 / math.exp(rng.uniform(-math.log(s["max"]), -math.log(s["min"]))),
    "normal": lambda s, rng: rng.normal(s.get("mu", 0), s.get("sigma", 1)),
    "log_normal": lambda s, rng: rng.lognormal(s.get("mu", 0), s.get("sigma", 1)),
}


def shard(points: list[RunConfig], which: str) -> list[RunConfig]:
    """Part i of n of the runs, in their order, for `which` = "i/n" with i from 1 to n.

    The parts cover the runs, do not overlap and are of one length, up to one run. They depend on nothing but the
    runs, so that the shards of a sweep may train on different machines. Runs that can be one stack stay together,
    but where a part ends in their midst; shapes are mixed, so that parts take about as long as each other.
    """
    i, _, n = which.partition("/")
    valid = i.isdecimal() and n.isdecimal() and 1 <= int(i) <= int(n)
    require(valid, f"shard={which} must be i/n with i from 1 to n, like 1/4")
    require(
        int(n) <= len(points),
        f"shard={which} asks for more parts than the sweep has runs; use at most {len(points)} parts",
    )
    groups = sorted(make_stacks(points, None), key=lambda stack: stack[0].hash)
    mixed = [config.hash for stack in groups for config in stack]
    chosen = set(mixed[len(mixed) * (int(i) - 1) // int(n) : len(mixed) * int(i) // int(n)])
    return [config for config in points if config.hash in chosen]
