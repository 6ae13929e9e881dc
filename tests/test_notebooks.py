"""The notebooks run from top to bottom, so that they stay true."""

import re
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from jupyter_client.manager import KernelManager, start_new_kernel
from nbclient import NotebookClient

# As `dense_epochs=12` in a call and `epochs: 10` in a config: what a cell does is the same in two.
EPOCHS = re.compile(r"\b(\w*epochs)( ?[=:] ?)\d+")
NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


def test_there_are_notebooks():
    assert [path.stem for path in NOTEBOOKS] == [
        *("quickstart", "trade_off_curve", "your_own_model_and_data"),
    ]


@pytest.fixture(scope="module")
def kernel() -> Iterator[KernelManager]:
    """One for all of them, which imports everything once."""
    manager, client = start_new_kernel(kernel_name="python3")
    client.stop_channels()
    yield manager
    manager.shutdown_kernel()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path, kernel):
    notebook = nbformat.read(path, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "commit it without outputs"
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.source = EPOCHS.sub(_few, cell.source)
    notebook.cells.insert(0, nbformat.v4.new_code_cell("%reset -f"))  # the names of the last one
    # A failing cell raises CellExecutionError, which shows the cell and its traceback.
    NotebookClient(notebook, timeout=600, km=kernel).execute()


def _few(match: re.Match[str]) -> str:
    name, sign = match.groups()
    return f"{name}{sign}1"
