"""Paths that somebody has typed: pathlib raises on some that the shell takes, and on some that nobody can."""

import errno
import os
import stat
from pathlib import Path

from chargpt.errors import UserError

_ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EBADF)  # what `Path.exists` takes for "no"


def resolve_path(setting: str, text: str | Path) -> Path:
    """The path, with `~` as the shell has it; a user who is not there is a name like any other.

    Args:
        setting: what it was given for, for the message.

    Raises:
        UserError: nobody may look there, or it is too long or holds a NUL to be a path.
    """
    path = Path(os.path.expanduser(text))  # noqa: PTH111 - pathlib's raises on a user who is not there
    try:
        path.stat()
    except OSError as error:
        if error.errno not in _ABSENT:
            raise UserError(f"{setting}={_short(text)}: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{setting}={_short(text)} is no path: {error}") from error
    return path


def _short(text: str | Path) -> str:
    return str(text) if len(str(text)) <= 80 else f"{str(text)[:80]}..."


def printable(path: str | Path) -> str:
    """A path to be printed: bytes that are no text are marked as such."""
    return os.fsencode(path).decode("utf-8", "replace")


def read_bytes(path: Path) -> bytes:
    """All that is in a file, or comes from a pipe; nothing, if nobody is at its other end. Raises `OSError`."""
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        status = os.fstat(file.fileno())
        if stat.S_ISREG(status.st_mode) and not status.st_size:
            return b""  # what a kernel makes up may have no end
        os.set_blocking(file.fileno(), True)
        return file.read()
