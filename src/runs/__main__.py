"""Tables of runs and logs, from the command line: write a table; bring runs into a log."""

import sys
from collections.abc import Iterable

from src.errors import LogError
from src.runs.table import export

USAGE = """usage: python -m src.runs export SOURCE [SOURCE ...] TABLE.parquet|TABLE.csv
       python -m src.runs import SOURCE [SOURCE ...] LOG.db

A source is a run log, a table, a pattern of several in quotes, or a W&B sweep: entity/project/sweep_id."""


def main(arguments: Iterable[str] = tuple(sys.argv[1:])) -> int:
    try:
        match list(arguments):
            case ["export", *sources, path] if sources and path.endswith((".parquet", ".csv")):
                print(f"{export(sources, path)} runs written to {path}")
            case ["import", *sources, path] if sources and path.endswith(".db"):
                print(summary_of_import(sources, path))
            case _:
                print(USAGE, file=sys.stderr)
                return 2
    except (LogError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def summary_of_import(sources: list[str], path: str) -> str:
    from src.runs.merge import import_runs

    counts = import_runs(sources, path)
    said = {
        "there": "there already",
        "busy": "being trained by another process",
        "not ended": "that have not ended left out",
        "other code": "left out whose config does not say all that decides a run",
    }
    others = [f"{counts[name]} {words}" for name, words in said.items() if counts[name]]
    return "; ".join([f"{counts['written']} runs written to {path}", *others])


if __name__ == "__main__":
    sys.exit(main())
