"""The notebook of the toy experiments, run headless from another directory; its figures go elsewhere too."""

from pathlib import Path

import nbformat
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[1] / "visualizations" / "toy_experiments.ipynb"
FILES = (
    "softmax_and_u_evolution_icml_2col",
    "square_loss_comparison",
    "log_loss_comparison",
    "massive_activations_2",
    "condition_numbers",
    "condition_numbers_small",
    "kl",
    "descent_and_flow",
    "entropy",
    "ratio_bound",
    "attention_sink",
)


def test_the_notebook_runs_from_any_directory(tmp_path):
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    elsewhere = f"from src import figures\nfigures.save.__defaults__ = ({str(tmp_path)!r},)"
    notebook.cells.insert(0, nbformat.v4.new_code_cell(elsewhere))
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    saved = {path.name for path in tmp_path.iterdir()}
    assert saved == {f"{name}.{kind}" for name in FILES for kind in ("pdf", "png")}


def test_the_notebook_defines_nothing_and_its_cells_are_short():
    for cell in nbformat.read(NOTEBOOK, as_version=4).cells:
        assert len(cell.source.splitlines()) <= 12
        if cell.cell_type == "code":
            assert not any(word in cell.source for word in ("def ", "class ", "lambda "))
            assert cell.execution_count  # committed with its results
