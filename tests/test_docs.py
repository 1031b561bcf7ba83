"""docs/adding_a_model.md: its files and commands work as they are, from top to bottom, in a copy of this clone."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from chargpt.data.corpus import TinyShakespeare
from chargpt.errors import UserError
from tests.conftest import REPO

BLOCK = re.compile(r"(`(?P<path>[\w./]+)`:\n\n)?^```(?P<language>\w+)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.mark.slow
def test_the_files_and_commands_of_adding_a_model_work(tmp_path):
    try:
        TinyShakespeare().read()
    except UserError as error:
        pytest.skip(str(error))
    for name in ("src", "conf"):
        shutil.copytree(REPO / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for script in REPO.glob("*.py"):
        shutil.copy(script, tmp_path)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "PYTHONPATH": str(tmp_path / "src")}
    commands = 0
    for block in BLOCK.finditer((REPO / "docs" / "adding_a_model.md").read_text()):
        if block["language"] == "sh":
            for command in block["code"].splitlines():
                done = subprocess.run(
                    command, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
                )
                assert done.returncode == 0, f"{command}: {done.stderr}"
                commands += 1
        else:
            assert block["path"], f"a block without a path: {block['code']}"
            file = tmp_path / block["path"]
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(block["code"])
    assert commands >= 12
