"""How this process was started: `python train.py` in a clone, or `chargpt train` of the installed package.

Messages print commands in the form that the user typed, and child processes are started in the same way.
"""

import os
import re
import shlex
import shutil
import sys
from pathlib import Path

_console_command = ""  # the command that follows `chargpt`; empty for a script such as train.py


def use_console_command(command: str) -> None:
    """Declares that this process was started as `chargpt COMMAND`."""
    global _console_command  # noqa: PLW0603 - a property of the process, like sys.argv
    _console_command = command


def program_name() -> str:
    """The name of this program in error messages: `train.py` or `chargpt train`."""
    return f"chargpt {_console_command}" if _console_command else Path(sys.argv[0]).name


def child_command() -> list[str]:
    """The arguments, without overrides, that start this program in a child process."""
    program = ["-m", "chargpt", _console_command] if _console_command else [str(Path(sys.argv[0]).resolve())]
    return [sys.executable, *program]


def command_line(command: str, *arguments: str) -> str:
    """A command to print, which runs when it is pasted into this shell: `python sample.py run=...`."""
    if _console_command:
        program = ["chargpt"] if _is_on_path("chargpt") else [*python(), "-m", "chargpt"]
        return shlex.join([*program, command, *arguments])
    script = Path(sys.argv[0]).resolve().with_name(f"{command}.py")
    return shlex.join([*python(), _short(script), *arguments])


def localize(text: str) -> str:
    """A text that mentions `python train.py`, as it applies to this process: `chargpt train`."""
    return re.sub(r"\bpython (\w+)\.py\b", r"chargpt \1", text) if _console_command else text


def python() -> list[str]:
    """This interpreter as the user would type it: plain `python` only if the PATH resolves to it."""
    return ["python"] if _is_on_path("python") else [_short(Path(sys.executable))]


def config_folder() -> Path:
    """The folder of the project's configs: `conf/` in a clone, which a wheel contains as `chargpt/conf/`."""
    package = Path(__file__).parent
    folder = package / "conf"
    return folder if folder.is_dir() else package.parents[1] / "conf"


def _is_on_path(name: str) -> bool:
    found = shutil.which(name)
    return found is not None and Path(found).parent == Path(sys.executable).parent


def _short(path: Path) -> str:
    relative = os.path.relpath(path)
    return str(path) if relative.startswith(os.pardir) else relative
