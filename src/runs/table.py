"""Reading runs back, as one table from wherever they are kept, and writing such tables."""

import glob
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from src.errors import LogError
from src.runs.log import DEFAULT_LOG, HISTORY, RunLog
from src.runs.provenance import ROOT

if TYPE_CHECKING:
    import pandas as pd  # slow to import: for the readers of a log, not for the workers that write it

COMMITTED = ROOT / "results" / "runs.parquet"


def load_runs(source: Path | str = DEFAULT_LOG, history: bool = False) -> "pd.DataFrame":
    """One table, a row for each run, from wherever runs are kept.

    source: a run log (a .db file) or a pattern of several, like `logs/shard-*.db`, of which the table has each
    run once; a Parquet table made by `export`; or `entity/project/sweep_id` on Weights & Biases, whoever's code
    logged it. Columns: the fields of RunConfig, the metrics of the run's summary under their logged names, hash (on
    W&B the run's id), state, seconds (of a run in a stack its share), and what else the source knows. With `history`
    also columns `history/NAME`, each cell a list with one value for each epoch.

    Raises LogError if there is no such source or it cannot be read.
    """
    import pandas as pd

    path = Path(source)
    if set(str(source)) & set("*?["):
        return _load_logs(str(source), history)
    if path.suffix == ".parquet":
        return _load_parquet(path, history)
    if path.exists() or path.suffix == ".db":
        require_log(path)
        return pd.DataFrame.from_records(list(RunLog(path).records(history)))
    if str(source).count("/") == 2 and not path.is_absolute():
        from src.runs.wandb_reader import records  # W&B is imported only where it is used

        return pd.DataFrame.from_records(list(records(str(source), history)))
    raise LogError(
        f"{source} is no source of runs: give a run log (.db) or a pattern of several, a table (.parquet), or "
        "entity/project/sweep_id of a W&B sweep"
    )


def _load_logs(pattern: str, history: bool) -> "pd.DataFrame":
    """The runs of all logs whose paths match; of a run that several have, the one that got furthest."""
    import pandas as pd

    paths = sorted(glob.glob(pattern))
    if not paths:
        raise LogError(f"no run log matches {pattern}; train.py makes logs, or name another source")
    best: dict[str, dict[str, Any]] = {}
    for path in paths:
        for row in RunLog(path).records(history):
            if row["hash"] not in best or _rank(row) < _rank(best[row["hash"]]):
                best[row["hash"]] = row
    return pd.DataFrame.from_records(sorted(best.values(), key=lambda row: (row["started"], row["hash"])))


def _rank(row: dict[str, Any]) -> int:
    return ("finished", "diverged", "failed", "interrupted", "running").index(row["state"])


def require_log(path: Path) -> None:
    if not path.is_file():
        raise LogError(f"there is no run log {path}; train.py makes one, or name another source")


def _load_parquet(path: Path, history: bool) -> "pd.DataFrame":
    import pandas as pd
    import pyarrow.parquet as pq

    if not path.is_file():
        raise LogError(f"there is no table {path}; `python -m src.runs export` makes one, or name another source")
    try:
        names = pq.read_schema(path).names
        return pd.read_parquet(path, columns=[n for n in names if history or not n.startswith(HISTORY)])
    except (OSError, ValueError) as error:
        raise LogError(f"cannot read the table {path}: {error}") from error


def export(source: Path | str, path: Path | str) -> int:
    """Write the runs of `source` with their histories to the Parquet table `path`; how many."""
    runs = load_runs(source, history=True)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".part")
    runs.to_parquet(unfinished, index=False, compression="zstd")
    os.replace(unfinished, path)  # a killed export leaves the old table whole
    return len(runs)
