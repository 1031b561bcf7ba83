"""How this process was started: `python train.py` in a clone, or `chargpt train` of the installed package.

Messages print commands in the form that the user typed, and child processes are started in the same way. A call of the
Python API counts as `chargpt train`.
"""

import contextlib
import os
import re
import shlex
import shutil
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

_console_command = ""  # the command that follows `chargpt`; empty for a script such as train.py
_arguments: list[str] | None = None  # of a call from Python; otherwise they are in sys.argv
_config_dir: str | None = None  # the folder of --config-dir
_trust: tuple[str, ...] = ()  # the packages that a command must trust to load the run of this process


def use_console_command(command: str) -> None:
    """Declares that this process was started as `chargpt COMMAND`."""
    global _console_command  # noqa: PLW0603 - a property of the process, like sys.argv
    _console_command = command


def use_options(config_dir: str | None, trust: Iterable[str]) -> None:
    """Declares options of this process that printed commands need as well.

    Args:
        config_dir: the folder of --config-dir.
        trust: the packages whose code the run uses.
    """
    global _config_dir, _trust
    _config_dir, _trust = config_dir, tuple(trust)


def used_packages() -> tuple[str, ...]:
    """The packages that a command must trust to load the run of this process."""
    return _trust


@contextlib.contextmanager
def called_from_python(arguments: list[str]) -> Iterator[None]:
    """In this context, this process counts as `chargpt train ARGUMENTS`, whatever program it is."""
    global _console_command, _arguments, _config_dir, _trust
    saved = _console_command, _arguments, _config_dir, _trust
    _console_command, _arguments = "train", arguments
    try:
        yield
    finally:
        _console_command, _arguments, _config_dir, _trust = saved


def is_trust(argument: str) -> bool:
    """Whether an argument is the override `trust=`, which is never saved."""
    return argument.lstrip("+").startswith("trust=")


def is_called_from_python() -> bool:
    """Whether this process runs a function of the Python API."""
    return _arguments is not None


def arguments() -> list[str]:
    """The arguments of this command: overrides and flags."""
    return sys.argv[1:] if _arguments is None else _arguments


def program_name() -> str:
    """The name of this program in error messages: `train.py` or `chargpt train`."""
    return f"chargpt {_console_command}" if _console_command else Path(sys.argv[0]).name


def child_command() -> list[str]:
    """The arguments, without overrides, that start this program in a child process."""
    # -P: the current directory may be a downloaded one, whose modules must not be imported.
    program = ["-P", "-m", "chargpt", _console_command] if _console_command else [str(Path(sys.argv[0]).resolve())]
    return [sys.executable, *program]


def command_line(command: str, *arguments: str, trust: Iterable[str] = ()) -> str:
    """A command to print, which runs when it is pasted into this shell: `python sample.py run=...`.

    Args:
        trust: the packages that it must trust, besides those of the run of this process.
    """
    packages = [*dict.fromkeys((*_trust, *trust))]
    options = [f"--config-dir={_config_dir}"] if _config_dir and command == "train" else []
    if packages and any(argument.startswith(("run=", "resume=", "rerun=")) for argument in arguments):
        options.append(f"trust={','.join(packages)}" if len(packages) == 1 else f"trust=[{','.join(packages)}]")
    if _console_command:
        program = ["chargpt"] if _is_on_path("chargpt") else [*python(), "-P", "-m", "chargpt"]
        return shlex.join([*program, command, *arguments, *options])
    script = Path(sys.argv[0]).resolve().with_name(f"{command}.py")
    return shlex.join([*python(), _short(script), *arguments, *options])


def tensorboard_command(folder: Path) -> str:
    """The command that shows a folder of runs in TensorBoard."""
    program = ["tensorboard"] if python() == ["python"] else [*python(), "-m", "tensorboard.main"]
    return shlex.join([*program, "--logdir", str(folder)])


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
