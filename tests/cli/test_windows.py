"""On Windows, every command ends with one line. Windows is simulated in a separate process."""

import subprocess
import sys

import pytest

from tests.conftest import REPO

SCRIPTS = sorted(path.name for path in REPO.glob("*.py"))
# What Python does not have on Windows, and what this package uses elsewhere.
WINDOWS = """
import os, runpy, signal, sys

sys.platform = "win32"
for module in ("fcntl", "grp", "pwd", "resource", "termios"):
    sys.modules[module] = None
for name in ("SIGHUP", "SIGUSR1", "SIGKILL", "pthread_sigmask"):
    delattr(signal, name)
for name in ("fork", "getuid", "O_CLOEXEC", "set_blocking"):
    delattr(os, name)
"""


def run_on_windows(folder, code: str) -> tuple[int, str, str]:
    command = [sys.executable, "-c", WINDOWS + code]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("arguments", ["--help", "model=gpt_nano"])
@pytest.mark.parametrize("script", [*SCRIPTS, "chargpt"])
def test_every_command_ends_with_one_line_that_names_wsl(tmp_path, script, arguments):
    run = f"runpy.run_path({str(REPO / script)!r}, run_name='__main__')"
    if script == "chargpt":
        run, arguments = "runpy.run_module('chargpt', run_name='__main__')", f"train {arguments}"
    code, out, err = run_on_windows(
        tmp_path, f"sys.path.insert(0, {str(REPO)!r})\nsys.argv = [{script!r}, *{arguments.split()!r}]\n{run}"
    )
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert "WSL" in err
    assert not [*tmp_path.iterdir()]


def test_the_simulated_windows_lacks_what_the_command_line_uses(tmp_path):
    """Without the check, the commands would end with a traceback, so the test above tests something."""
    code, _, err = run_on_windows(tmp_path, "import chargpt.distributed.env")
    assert code == 1
    assert "AttributeError" in err
