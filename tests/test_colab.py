"""The Colab notebook: its commands compose, and it installs this repository."""

import re
import shlex
import tomllib
from pathlib import Path

import nbformat
import pytest

from tests.conftest import REPO

NOTEBOOK = nbformat.read(REPO / "docs" / "colab.ipynb", as_version=4)
CODE = [cell for cell in NOTEBOOK.cells if cell.cell_type == "code"]
LINES = [line.removeprefix("# ") for cell in CODE for line in cell.source.splitlines()]
SHELL = [shlex.split(line.removeprefix("!")) for line in LINES if line.startswith("!")]
URL = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]["urls"]["Repository"]


def test_the_notebook_clones_and_installs_this_repository():
    clone, install, *commands = SHELL
    assert clone == ["git", "clone", "--quiet", "--depth", "1", URL, "chargpt"]
    assert install == ["pip", "install", "--quiet", "-e", "."]
    assert {command[0] for command in commands} == {"python"}
    assert [line for line in LINES if line.startswith("%")] == [
        "%cd chargpt",
        "%load_ext tensorboard",
        "%tensorboard --logdir outputs",
    ]
    assert all(line.startswith(("!", "%")) for line in LINES)


@pytest.mark.parametrize("command", [words for words in SHELL if words[0] == "python"], ids=" ".join)
def test_each_command_composes(command, run_cli, tmp_path: Path):
    script, arguments = command[1], command[2:]
    assert (REPO / script).is_file()
    (tmp_path / "my_book.txt").write_text("text")
    outcome = run_cli(script.removesuffix(".py"), *arguments, "--cfg", "job")
    assert outcome.code == 0, outcome.err
    assert list(tmp_path.iterdir()) == [tmp_path / "my_book.txt"]


def test_the_notebook_selects_a_gpu_and_has_no_outputs():
    assert NOTEBOOK.metadata.accelerator == "GPU"
    assert not any(cell.outputs or cell.execution_count for cell in CODE)
    nbformat.validate(NOTEBOOK)


def test_the_readme_has_the_same_address():
    text = (REPO / "README.md").read_text()
    assert f"git clone {URL} " in text
    path = URL.removeprefix("https://github.com/")
    assert f"https://colab.research.google.com/github/{path}/blob/main/docs/colab.ipynb" in text
    assert set(re.findall(r"https://github\.com/([\w-]+/chargpt)", text)) == {path}


def test_the_version_is_printed_and_named_where_a_newcomer_looks(run_cli):
    assert "train.py --version" in (REPO / "README.md").read_text()
    assert "train.py --version" in run_cli("train", "--help").out
