"""The notebooks run from top to bottom, so that they stay true."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


def test_there_are_notebooks():
    assert [path.stem for path in NOTEBOOKS] == [
        *("quickstart", "trade_off_curve", "your_own_model_and_data"),
    ]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path):
    notebook = nbformat.read(path, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "commit it without outputs"
    # A failing cell raises CellExecutionError, which shows the cell and its traceback.
    NotebookClient(notebook, timeout=600, kernel_name="python3").execute()
