"""Reading runs back, as one table from wherever they are kept, and writing such tables."""

import glob
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from src.errors import LogError
from src.runs.log import DEFAULT_LOG
from src.runs.provenance import ROOT
from src.runs.reader import HISTORY, SIDE_FILES, read

if TYPE_CHECKING:
    import pandas as pd  # slow to import: for the readers of a log, not for the workers that write it

COMMITTED = ROOT / "results" / "runs.parquet"


def load_runs(source: Path | str | Iterable[Path | str] = DEFAULT_LOG, history: bool = False) -> "pd.DataFrame":
    """One table, a row for each run, from wherever runs are kept.

    source: a run log (a .db file); a table made by `export`, Parquet or CSV, or a folder of Parquet files; a pattern
    of several, like `logs/shard-*.db`; `entity/project/sweep_id` on Weights & Biases, whoever's code logged it; or
    several of these. The table has each run once: of several rows of one run the one that got furthest.

    Columns: the fields of RunConfig, the metrics of the run's summary under their logged names, hash (of W&B's runs of
    other code, their id), state, seconds (of a run in a stack its share), and what else the source knows. With
    `history` also columns `history/NAME`, each cell a list with one value for each epoch. Numbers are numpy's, NaN
    where missing; texts and lists are objects, None where missing.

    Raises LogError if there is no such source or it cannot be read. Nothing is ever written to or beside a source.
    """
    import pandas as pd

    from src.runs.columns import plain
    from src.runs.identity import once, with_defaults, with_hashes

    sources = [source] if isinstance(source, str | os.PathLike) else list(source)
    tables = [table for one in sources for table in _tables(one, history)]
    filled = [table for table in tables if len(table)] or tables[:1]
    if not filled:
        raise LogError("no source of runs was given; name a run log or a table")
    runs = plain(filled[0] if len(filled) == 1 else pd.concat([t.astype(object) for t in filled], ignore_index=True))
    if not len(runs):
        return runs
    runs = with_defaults(runs)
    if "state" not in runs:
        return runs
    runs = once(with_hashes(runs))
    if len(filled) > 1 and "started" in runs:
        runs = runs.sort_values(["started", "hash"], ignore_index=True)
    return runs


def _tables(source: Path | str, history: bool) -> list["pd.DataFrame"]:
    path = Path(source)
    if os.path.exists(path):  # a name with * in it is a name, where there is such a file; none is too long to ask
        return [_table(path, history)]
    if set(str(source)) & set("*?["):
        return [_table(match, history) for match in _matches(path)]
    if path.suffix in (".parquet", ".csv"):
        raise LogError(f"there is no table {path}; `python -m src.runs export` makes one, or name another source")
    if path.suffix == ".db":
        raise LogError(f"there is no run log {path}; train.py makes one, or name another source")
    if str(source).count("/") == 2 and not path.is_absolute():
        import pandas as pd

        from src.runs.wandb_reader import records  # W&B is imported only where it is used

        return [pd.DataFrame.from_records(list(records(str(source), history)))]
    raise LogError(
        f"{source} is no source of runs: give a run log (.db), a table (.parquet or .csv), a pattern of several, or "
        "entity/project/sweep_id of a W&B sweep"
    )


def _matches(pattern: Path) -> list[Path]:
    """The files that match, less those that lie beside logs. What exists of the pattern's folders is no pattern."""
    root = next(folder for folder in pattern.parents if folder.exists())
    found = glob.glob(str(pattern.relative_to(root)), root_dir=root)
    paths = [root / name for name in sorted(found) if not name.endswith(SIDE_FILES)]
    if not paths:
        raise LogError(f"no run log matches {pattern}; train.py makes logs, or name another source")
    return paths


def _table(path: Path, history: bool) -> "pd.DataFrame":
    """The rows of a file, as they stand there."""
    import pandas as pd

    if path.suffix == ".parquet" or path.is_dir():
        return _parquet(path, history)
    if path.suffix == ".csv":
        return _csv(path, history)
    return pd.DataFrame.from_records(read(path, history))


def _parquet(path: Path, history: bool) -> "pd.DataFrame":
    import pandas as pd
    import pyarrow.dataset as ds

    if path.is_dir() and not any(path.rglob("*.parquet")):
        raise LogError(f"the folder {path} has no Parquet files; name a run log or a table")
    try:
        names = ds.dataset(path, partitioning="hive", format="parquet").schema.names
        table = pd.read_parquet(path, columns=[n for n in names if history or not n.startswith(HISTORY)])
    except (OSError, ValueError, TypeError) as error:
        raise LogError(f"cannot read the table {path}: {error}") from error
    named = [name for name in table.index.names if name is not None]
    return table.reset_index(drop=not named)


def _csv(path: Path, history: bool) -> "pd.DataFrame":
    import pandas as pd

    try:
        # Texts, for `plain` to make numbers of: a hash may look like one.
        return pd.read_csv(path, dtype=str, usecols=lambda name: history or not name.startswith(HISTORY))
    except (OSError, ValueError) as error:
        raise LogError(f"cannot read the table {path}: {error}") from error


def export(source: Path | str | Iterable[Path | str], path: Path | str) -> int:
    """Write the runs of `source` with their histories, rounded to float32, to the table `path` (.parquet or .csv);
    how many."""
    runs = load_runs(source, history=True)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        (_write_csv if path.suffix == ".csv" else _write_parquet)(runs, unfinished)
        os.replace(unfinished, path)  # a killed export leaves the old table whole
    finally:
        unfinished.unlink(missing_ok=True)
    return len(runs)


def _write_parquet(runs: "pd.DataFrame", path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    mixed = [n for n in runs if runs[n].dtype == object and not n.startswith(HISTORY) and _is_mixed(runs[n])]
    runs = runs.assign(**{name: runs[name].map(str, na_action="ignore") for name in mixed})
    table = pa.Table.from_pandas(runs, preserve_index=False)
    for i, field in enumerate(table.schema):
        if field.type == pa.list_(pa.float64()):
            table = table.set_column(i, field.name, table.column(i).cast(pa.list_(pa.float32())))
    pq.write_table(table, path, compression="zstd")


def _is_mixed(cells: "pd.Series") -> bool:
    """Whether there are texts and others among the cells: no column of a Parquet table can hold them."""
    texts = cells.dropna().map(lambda cell: isinstance(cell, str))
    return texts.any() and not texts.all()


def _write_csv(runs: "pd.DataFrame", path: Path) -> None:
    def text(values: list[float] | None) -> str | None:
        return values and json.dumps([v if isinstance(v, int) else float(np.float32(v)) for v in values])

    histories = {name: [text(values) for values in runs[name]] for name in runs if name.startswith(HISTORY)}
    runs.assign(**histories).to_csv(path, index=False)
