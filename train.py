"""Train one run, or every run of a sweep file.

uv run python train.py                                      # the default induction run
uv run python train.py --task=classification --num_layers=1
uv run python train.py --sweep sweeps/quick.yaml            # every run of a sweep, no account needed
uv run wandb agent ENTITY/PROJECT/SWEEP                     # the same through Weights & Biases
"""

import os
import re
import shlex
import signal
import sys
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentError, ArgumentParser, Namespace

from src.config import FIELDS, ConfigError, RunConfig, check_name, checked, require
from src.runs import DEFAULT_LOG, LogError, RunLog, load_runs
from src.training import Observer, choose_device, prepare_process

EXIT_FAILED, EXIT_BAD_INPUT, EXIT_INTERRUPTED = 1, 2, 130


def main(arguments: list[str]) -> int:
    try:
        options, given = parse(arguments)
        if options.sweep:
            return run_sweep(options, given)
        return run_one(options, RunConfig.from_dict(given))
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT
    except LogError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_FAILED
