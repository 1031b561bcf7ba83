"""The lecture notebook: its claims hold, and its .py and .ipynb files are equal."""

import jupytext
import nbformat
import pytest
from nbclient import NotebookClient

from chargpt.data.corpus import TinyShakespeare
from chargpt.errors import UserError
from tests.conftest import REPO

FOLDER = REPO / "experiments" / "lecture"


@pytest.fixture(scope="module")
def notebook() -> nbformat.NotebookNode:
    return nbformat.read(FOLDER / "walkthrough.ipynb", as_version=4)


def test_the_notebook_matches_the_script_and_contains_no_outputs(notebook):
    script = jupytext.read(FOLDER / "walkthrough.py")
    expected = [(cell.cell_type, cell.source) for cell in script.cells]
    assert [(cell.cell_type, cell.source) for cell in notebook.cells] == expected, "jupytext --sync walkthrough.py"
    assert not any(cell.get("outputs") for cell in notebook.cells)


@pytest.mark.slow
def test_the_notebook_runs_and_its_assertions_hold(notebook):
    try:
        TinyShakespeare().read()
    except UserError as error:
        pytest.skip(str(error))
    executed = NotebookClient(notebook.copy(), timeout=180, resources={"metadata": {"path": str(FOLDER)}}).execute()
    outputs = [output for cell in executed.cells if cell.cell_type == "code" for output in cell.outputs]
    figures = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(figures) >= 7
    assert sum("assert " in cell.source or "assert_close" in cell.source for cell in notebook.cells) >= 15
