"""The run log and tables of runs: write, resume, read back, bring together.

uv run python -m src.runs export logs/runs.db results/table.parquet
uv run python -m src.runs import results/runs.parquet logs/runs.db
"""

from src.errors import LogError
from src.runs.log import DEFAULT_LOG, RunLog
from src.runs.provenance import ROOT
from src.runs.reader import HISTORY
from src.runs.table import COMMITTED, export, load_runs

__all__ = ["COMMITTED", "DEFAULT_LOG", "HISTORY", "ROOT", "LogError", "RunLog", "export", "load_runs"]
