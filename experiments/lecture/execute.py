"""Runs walkthrough.py as a notebook and writes walkthrough.ipynb with its outputs.

    python experiments/lecture/execute.py

What differs between two machines is left out: timestamps, the version of Python, random cell IDs.
"""

import hashlib
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).parent
TIMEOUT = 1200  # seconds for one cell


def execute(script: Path, folder: Path) -> nbformat.NotebookNode:
    """The notebook of a jupytext script with its outputs; `folder` is the current directory of its cells."""
    notebook = jupytext.read(script)
    settings = {"timeout": TIMEOUT, "record_timing": False, "coalesce_streams": True}
    NotebookClient(notebook, **settings, resources={"metadata": {"path": str(folder)}}).execute()
    for cell in notebook.cells:
        cell.id = hashlib.sha256(cell.source.encode()).hexdigest()[:8]
        cell.metadata = nbformat.NotebookNode()
    notebook.metadata = nbformat.from_dict(
        {
            "jupytext": {"formats": "ipynb,py:percent"},
            "kernelspec": notebook.metadata.kernelspec,
            "language_info": {"name": "python"},
        }
    )
    return notebook


if __name__ == "__main__":
    nbformat.write(execute(HERE / "walkthrough.py", HERE), HERE / "walkthrough.ipynb")
