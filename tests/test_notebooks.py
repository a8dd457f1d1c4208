"""Every notebook, run headless from another directory; its figures go elsewhere too."""

import asyncio
from pathlib import Path

import nbformat
import pytest
from jupyter_client import AsyncKernelManager
from nbclient import NotebookClient

FOLDER = Path(__file__).parents[1] / "visualizations"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))

# Each notebook begins in an empty namespace and another folder, and saves its figures there, with fewer dots and
# simpler fonts and no layout; they are not drawn once more for the page.
BEGINNING = """
%reset -f
%config InlineBackend.figure_formats = []
%matplotlib agg
import gc
import os
import matplotlib.pyplot as plt
from src.analysis.figures import animation, style
os.chdir({folder!r})
plt.ioff()  # what is drawn is saved, and need not be drawn at the end of its cell too
plt.close("all")
style.STYLE.update({{"savefig.dpi": 60, "figure.dpi": 60, "pdf.fonttype": 3, "figure.constrained_layout.use": False}})
plt.style.use(style.IN_STYLE)
style.FOLDER = {folder!r}
animation.DOTS_PER_INCH = 60
gc.freeze()  # whoever collects garbage from here on need not look through what the last notebooks left
"""

# What trains or searches for long has fewer runs, starts or pictures here: (as in the notebook, as here).
SMALLER = {
    "beyond_softmax": [("adam.starts(8, 8, 0.1, 40)", "adam.starts(8, 8, 0.1, 4)"), ("8, 0.1, 60)", "8, 0.1, 6)")],
    "classification_with_sample_tracking": [("for seed in range(5)", "for seed in range(2)")],
    "induction_save_attn_patterns": [("LAYER, SEQUENCES = 1, 5", "LAYER, SEQUENCES = 1, 1")],
    "polarization": [
        ("num_epochs=4", "num_epochs=1"),
        ("len(weights), 60)", "len(weights), 6)"),
        ("000, 60)", "000, 6)"),
    ],
}


@pytest.fixture(scope="session")
def kernel():
    """One kernel for all of them, which imports torch once."""
    manager = AsyncKernelManager()
    yield manager
    if manager.has_kernel:
        asyncio.run(manager.shutdown_kernel(now=True))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_notebook_runs_from_any_directory(path, tmp_path, kernel):
    notebook = nbformat.read(path, as_version=4)
    for large, small in SMALLER.get(path.stem, ()):
        (cell,) = (cell for cell in notebook.cells if large in cell.source)
        cell.source = cell.source.replace(large, small)
    notebook.cells.insert(0, nbformat.v4.new_code_cell(BEGINNING.format(folder=str(tmp_path))))
    NotebookClient(notebook, km=kernel, timeout=300).execute()
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
