"""The lecture notebook: its claims hold, it is the same as its script, and it is stored with its outputs."""

import base64
import json
import re
from pathlib import Path

import jupytext
import nbformat
import pytest

from chargpt.data.corpus import TinyShakespeare
from chargpt.errors import UserError
from experiments.lecture.execute import execute
from tests.conftest import REPO

FOLDER = REPO / "experiments" / "lecture"
NOTEBOOK = FOLDER / "walkthrough.ipynb"
PNG = "image/png"
LOCAL_PATH = re.compile(r"/(?:tmp|home|root|Users|work|usr|var|opt|content)/|[A-Z]:\\|site-packages|\.venv")
TIMESTAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d")


@pytest.fixture(scope="module")
def notebook() -> nbformat.NotebookNode:
    return nbformat.read(NOTEBOOK, as_version=4)


def outputs_of(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


def figures_of(notebook: nbformat.NotebookNode) -> list[bytes]:
    data = [output.get("data", {}) for output in outputs_of(notebook)]
    return [base64.b64decode(entry[PNG]) for entry in data if PNG in entry]


def test_the_notebook_matches_the_script(notebook):
    script = jupytext.read(FOLDER / "walkthrough.py")
    expected = [(cell.cell_type, cell.source) for cell in script.cells]
    assert [(cell.cell_type, cell.source) for cell in notebook.cells] == expected, "run experiments/lecture/execute.py"


def test_the_notebook_is_stored_as_it_was_run_from_top_to_bottom(notebook):
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    for cell in code:
        printed = [output.text for output in cell.outputs if output.output_type == "stream"]
        assert bool(printed) == ("print(" in cell.source and not is_definition_only(cell.source)), cell.source
    assert {output.output_type for output in outputs_of(notebook)} <= {"stream", "display_data", "execute_result"}
    assert {output.name for output in outputs_of(notebook) if output.output_type == "stream"} == {"stdout"}


def is_definition_only(source: str) -> bool:
    return all(line.startswith((" ", "def ", "@", ")")) or not line for line in source.splitlines())


def test_each_figure_is_stored_as_a_small_image(notebook):
    figures = figures_of(notebook)
    drawn = sum("plt.subplots(" in cell.source or "plot_attention(" in cell.source for cell in notebook.cells)
    assert len(figures) == drawn >= 10
    assert all(figure.startswith(b"\x89PNG") for figure in figures)
    assert max(map(len, figures)) < 60_000
    assert NOTEBOOK.stat().st_size < 600_000


def test_the_stored_outputs_contain_no_paths_and_the_metadata_no_times(notebook):
    for output in outputs_of(notebook):
        text = output.get("text", "") + output.get("data", {}).get("text/plain", "")
        assert not LOCAL_PATH.search(text), text
    metadata = json.dumps([notebook.metadata, *(cell.metadata for cell in notebook.cells)])
    assert not TIMESTAMP.search(metadata)
    assert not any("execution" in cell.metadata for cell in notebook.cells)
    assert "version" not in notebook.metadata.language_info


def test_the_figure_of_overfitting_shows_the_gap(notebook):
    (cell,) = (cell for cell in notebook.cells if "def overfitting_curves" in cell.source)
    printed = "".join(output.text for output in cell.outputs if output.output_type == "stream")
    losses = re.findall(r"training loss ([\d.]+), validation loss ([\d.]+)", printed)
    (little, much) = (float(validation) - float(training) for training, validation in losses)
    assert little > 0.5 > much
    assert len([output for output in cell.outputs if PNG in output.get("data", {})]) == 1


@pytest.mark.slow
def test_the_notebook_runs_and_its_assertions_hold(notebook, tmp_path: Path):
    try:
        TinyShakespeare().read()
    except UserError as error:
        pytest.skip(str(error))
    executed = execute(FOLDER / "walkthrough.py", FOLDER)
    assert [cell.source for cell in executed.cells] == [cell.source for cell in notebook.cells]
    assert len(figures_of(executed)) == len(figures_of(notebook))
    assert sum("assert " in cell.source or "assert_close" in cell.source for cell in notebook.cells) >= 20
