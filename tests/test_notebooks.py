"""Every notebook, run headless from another directory; its figures go elsewhere too."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).parents[1] / "visualizations"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_notebook_runs_from_any_directory(path, tmp_path):
    notebook = nbformat.read(path, as_version=4)
    elsewhere = f"from src.analysis.figures import style\nstyle.FOLDER = {str(tmp_path)!r}"
    notebook.cells.insert(0, nbformat.v4.new_code_cell(elsewhere))
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    saved = list(tmp_path.iterdir())
    assert saved
    names = {path.name for path in saved}
    assert {name[:-3] + kind for name in names for kind in ("pdf", "png") if name[-3:] != "gif"} <= names
    for picture in saved:  # each is committed, but for maps of single heads
        assert picture.stat().st_size > 1000
        assert picture.name.startswith("attention_map_") or (FOLDER / "fig" / picture.name).exists()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_notebook_defines_nothing_and_its_cells_are_short(path):
    for cell in nbformat.read(path, as_version=4).cells:
        assert len(cell.source.splitlines()) <= 12
        if cell.cell_type == "code":
            assert not any(word in cell.source for word in ("def ", "class ", "lambda "))
            assert cell.execution_count  # committed with its results
            assert "ipykernel_" not in str(cell.outputs)  # a warning, which names a machine's paths
