"""Tables of runs, from the command line: `python -m src.runs export SOURCE TABLE.parquet`."""

import sys
from collections.abc import Iterable

from src.errors import LogError
from src.runs.table import export


def main(arguments: Iterable[str] = tuple(sys.argv[1:])) -> int:
    match list(arguments):
        case ["export", source, path] if path.endswith(".parquet"):
            try:
                print(f"{export(source, path)} runs written to {path}")
            except (LogError, OSError) as error:
                print(f"error: {error}", file=sys.stderr)
                return 1
            return 0
    print("usage: python -m src.runs export SOURCE TABLE.parquet", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
