"""Paths given by the user: expansion of `~`, error messages, and printing."""

import errno
import os
from pathlib import Path

from chargpt.errors import UserError
from chargpt.utils.terminal import without_controls

_ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EBADF)  # `Path.exists` returns False on these


def resolve_path(setting: str, text: str | Path) -> Path:
    """Returns the path with `~` expanded as in the shell; `~name` of an unknown user is left unchanged.

    Args:
        setting: the name of the setting, for the error message.

    Raises:
        UserError: the path is not accessible, too long, or not a valid path.
    """
    path = Path(os.path.expanduser(text))  # noqa: PTH111 - pathlib's expanduser raises for an unknown user
    try:
        path.stat()
    except OSError as error:
        if error.errno not in _ABSENT:
            raise UserError(f"{setting}={_short(text)}: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{setting}={_short(text)} is not a valid path: {error}") from error
    return path


def _short(text: str | Path) -> str:
    return str(text) if len(str(text)) <= 80 else f"{str(text)[:80]}..."


def is_folder_name(name: object) -> bool:
    """Whether it is the name of one folder, not a path, and can be printed."""
    return isinstance(name, str) and name.isprintable() and name not in ("", ".", "..") and Path(name).name == name


def printable(path: str | Path) -> str:
    """A path as printable text: bytes that are not UTF-8 become replacement characters."""
    return without_controls(os.fsencode(path).decode("utf-8", "replace"))
