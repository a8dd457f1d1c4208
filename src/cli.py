"""What both command lines share: how options are written, what is said of wrong ones, signals and exit statuses."""

import argparse
import difflib
import io
import os
import re
import shlex
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

from src.errors import ConfigError, require
from src.values import read_yaml, shown

FAILED, BAD_INPUT, INTERRUPTED = 1, 2, 130  # exit statuses


def run(program: str, command: Callable[[list[str]], int], arguments: list[str], *failures: type[Exception]) -> int:
    """The exit status of a command: its own; BAD_INPUT for a ConfigError and FAILED for one of the `failures`, each a
    sentence on stderr; INTERRUPTED for Ctrl-C and for SIGTERM, the end of a job's time."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    go_on_unread()
    try:
        return command(arguments)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT
    except failures as error:
        print(f"error: {error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        again = shlex.join(["uv", "run", "python", program, *arguments])
        print(f"\nStopped. What is done stays; the same command goes on: {again}", file=sys.stderr)
        return INTERRUPTED


class Dropping(io.FileIO):
    """Drops what it cannot write: to a pipe that nobody reads any more, or on a full disk."""

    def write(self, data) -> int:
        try:
            return super().write(data)
        except OSError:
            return len(data)


def go_on_unread() -> None:
    """Nothing that is printed can end the program: what comes of it is elsewhere, as in a log."""
    prepare_streams()
    for name in ("stdout", "stderr"):
        if type(stream := getattr(sys, name)) is io.TextIOWrapper:  # of a notebook or a test it is another
            buffer = io.BufferedWriter(Dropping(stream.fileno(), "w", closefd=False))
            setattr(sys, name, io.TextIOWrapper(buffer, stream.encoding, "replace", line_buffering=True))


def prepare_streams() -> None:
    """No stream ends the program by being closed, or by lacking a letter."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 (open as long as the process)
        if isinstance(stream := getattr(sys, name), io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def end_quietly_with_a_pipe() -> None:
    """For commands that only print: `… | head` is no error."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)


@dataclass(frozen=True)
class Option:
    """What a command line says of an option: its type (see `as_type`), default, explanation, and the value that it
    has where none is written; None where one must be. Of one that may be given `many` times all values count."""

    kind: Any
    default: Any
    about: str
    bare: str | None
    many: bool


def options_of(documented: type) -> dict[str, Option]:
    """The fields of a dataclass as options, explained as in its docstring; its metadata may have `bare` and `many`."""
    kinds = get_type_hints(documented)
    about = dict(re.findall(r"^ {8}(\w+): (.*)$", documented.__doc__ or "", re.MULTILINE))  # none under python -OO
    return {
        field.name: Option(
            kinds[field.name],
            None if field.default is MISSING else field.default,
            about.get(field.name, ""),
            "True" if is_switch(kinds[field.name]) else field.metadata.get("bare"),
            field.metadata.get("many", False),
        )
        for field in fields(documented)
    }


def is_switch(kind: Any) -> bool:
    return bool in (kind, *get_args(kind))


def read_options(program: str, summary: str, options: Mapping[str, Option], arguments: Sequence[str]) -> dict[str, Any]:
    """What was given, by name: texts of the command line, or values of the file that --config names, which the command
    line overrides. Prints the help and raises SystemExit if that is asked for.

    --NAME=VALUE, --NAME VALUE, NAME=VALUE and Hydra's +NAME=VALUE are one, as W&B's agent may write them, with hyphens
    or underscores. Raises ConfigError for what is no option or lacks its value, and for a file given twice.
    """
    written = [spelled(argument, options) for argument in arguments]
    given, unknown = make_parser(program, summary, options).parse_known_args(written)
    for argument in unknown:
        raise unknown_option(re.match(r"[-+]*([^=]*)", argument)[1] or argument, options)
    texts = vars(given)
    texts.pop("_wandb", None)  # W&B's own, which its server may send along: no parameter
    files = texts.pop("config", [])
    require(len(files) < 2, f"config is given twice, as {' and '.join(map(shown, files[:2]))}; leave one out")
    return (read_config(files[0], options) if files else {}) | {
        # as usual the last one counts
        name: values if options[name].many else switched(options[name], values[-1])
        for name, values in texts.items()
    }


def switched(option: Option, text: str) -> str:
    """An option that may stand without a value is also switched on and off, as in a sweep file."""
    return (
        {"True": option.bare, "False": "None"}.get(text, text) if option.bare and not is_switch(option.kind) else text
    )


def read_config(path: str, options: Mapping[str, Option]) -> dict[str, Any]:
    values = read_yaml(path, "the file of --config")
    names = {name.replace("-", "_"): name for name in values if name != "_wandb"}
    for name in names:
        if name not in options:
            raise unknown_option(name, options)
    require(len(names) == len(values.keys() - {"_wandb"}), f"an option is twice in {path}, with hyphens and without")
    return {name: values[as_written] for name, as_written in names.items()}


def spelled(argument: str, options: Mapping[str, Option]) -> str:
    """An option in any of its spellings as --NAME or --NAME=VALUE; anything else as it is."""
    match = re.fullmatch(r"(--|\+{0,2})([\w-]+)(=.*)?", argument, re.DOTALL)
    name = match[2].replace("-", "_") if match else None
    meant = name in (*options, "_wandb", "config") and (match[1] == "--" or match[3])
    return f"--{name}{match[3] or ''}" if meant else argument


def unknown_option(name: str, options: Mapping[str, Option]) -> ConfigError:
    near = difflib.get_close_matches(name.replace("-", "_"), options, n=1)
    return ConfigError(f"{shown(name)} is no option; " + (f"did you mean {near[0]}?" if near else "see --help"))


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:
        """The one thing that argparse can still find wrong."""
        raise ConfigError(re.sub("argument (--\\w+): .*", "\\1 needs a value: \\1=VALUE", message))


def make_parser(program: str, summary: str, options: Mapping[str, Option]) -> Parser:
    parser = Parser(
        prog=program,
        usage=f"{program} [--NAME=VALUE ...]",
        description=summary,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )

    def add(name: str, about: str, metavar: str, bare: str | None = None) -> None:
        optional = {"nargs": "?", "const": bare} if bare else {}
        parser.add_argument(f"--{name}", action="append", help=about, metavar=metavar, **optional)

    add("config", "YAML file of options", "FILE")
    add("_wandb", argparse.SUPPRESS, "", bare="None")
    for name, option in options.items():
        default = "" if option.default in (None, ()) else f" (default: {option.default})"
        add(name, (option.about + default).replace("%", "%%"), metavar_of(name, option.kind), option.bare)
    return parser


def metavar_of(name: str, kind: Any) -> str:
    """What the help shows in the place of a value: the choices, if there are some."""
    if is_switch(kind):
        return "True|False"
    for choice in (kind, *get_args(kind)):
        if get_origin(choice) is Literal:
            return "|".join(get_args(choice))
    return name.rpartition("_")[2].upper()
