"""Reading a sweep's runs from Weights & Biases, whoever's code logged them."""

import json
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any

from src.config import STACKABLE
from src.errors import LogError
from src.runs.reader import HISTORY, as_columns
from src.tasks import TASKS

MEMBERS = "members"  # the name of the table of a cell's runs


def records(source: str, history: bool = False) -> Iterator[dict[str, Any]]:
    """One flat dict for each run of the sweep `entity/project/sweep_id`, as `RunLog.records` gives them; for a
    cell, one for each of its runs.

    Runs come a page of hundreds at a time, histories and cells one request a run,
    several at once. Raises LogError if
    W&B cannot be reached, or has no such sweep.
    """
    import wandb
    from tqdm import tqdm

    entity, project, sweep = source.split("/")
    try:
        api = wandb.Api(timeout=60)
        runs = api.runs(f"{entity}/{project}", filters={"sweep": sweep}, per_page=500, lazy=False)
        total = len(runs)
        if not total:
            raise LogError(f"W&B has no runs of sweep {source}")
        with (
            ThreadPoolExecutor(8) as pool,
            tqdm(total=total, desc=source, unit="run") as bar,
        ):
            for records_of_run in pool.map(lambda run: as_records(run, history), runs):
                bar.update()
                yield from records_of_run
    except (wandb.Error, ValueError, OSError) as error:
        reason = " ".join(str(error).split())
        raise LogError(f"cannot read {source} from W&B ({reason}); try `wandb login`, or a local source") from error


def as_records(run: Any, history: bool) -> list[dict[str, Any]]:
    """A run of wandb.Api as flat dicts: one, or one for each run of a cell; none for a cell that has not ended."""
    if table := run.summary.get(MEMBERS):
        return read_cell(run, table["path"], history)
    cell = any(isinstance(run.config.get(name), list) for name in STACKABLE)
    return [] if cell else [as_record(run, history)]


def read_cell(run: Any, path: str, history: bool) -> list[dict[str, Any]]:
    """The rows of the table that `log_cell` has logged."""
    with tempfile.TemporaryDirectory() as folder:
        run.file(path).download(root=folder, replace=True)
        table = json.loads((Path(folder) / path).read_text())
    rows = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]

    def value(name: str, cell: Any) -> Any:
        return json.loads(cell) if name.startswith(HISTORY) or cell in ("NaN", "Infinity", "-Infinity") else cell

    return [
        {name: value(name, cell) for name, cell in row.items() if cell is not None and (history or HISTORY not in name)}
        for row in rows
    ]


def as_record(run: Any, history: bool) -> dict[str, Any]:
    """A run of wandb.Api as a flat dict: config, summary, and with `history` lists over epochs."""
    named = {k: v for k, v in (dict(run.config) | dict(run.summary)).items() if not k.startswith("_")}
    numbers = {k: v for k, v in named.items() if isinstance(v, int | float | str | bool) or v is None}
    started = datetime.fromisoformat(run.created_at).timestamp()
    record = {"hash": run.id, "state": run.state, "started": started, "seconds": run.summary.get("_runtime")} | numbers
    if "task" not in record:  # logged by other code
        record["task"] = next((name for name, task in TASKS.items() if task.accuracy in record), None)
    if history:
        record |= as_columns([{k: v for k, v in row.items() if k[0] != "_"} for row in run.scan_history()])
    return record
