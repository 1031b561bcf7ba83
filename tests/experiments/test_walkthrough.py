"""The notebook: what it claims holds, and its two forms say the same."""

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


def test_the_notebook_is_made_from_the_script_and_holds_no_outputs(notebook):
    script = jupytext.read(FOLDER / "walkthrough.py")
    made = [(cell.cell_type, cell.source) for cell in script.cells]
    assert [(cell.cell_type, cell.source) for cell in notebook.cells] == made, "jupytext --sync walkthrough.py"
    assert not any(cell.get("outputs") for cell in notebook.cells)


@pytest.mark.slow
def test_it_runs_from_top_to_bottom_and_its_claims_hold(notebook):
    try:
        TinyShakespeare().read()
    except UserError as mistake:
        pytest.skip(str(mistake))
    run = NotebookClient(notebook.copy(), timeout=180, resources={"metadata": {"path": str(FOLDER)}}).execute()
    outputs = [output for cell in run.cells if cell.cell_type == "code" for output in cell.outputs]
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(pictures) >= 7
    assert sum("assert " in cell.source or "assert_close" in cell.source for cell in notebook.cells) >= 15
