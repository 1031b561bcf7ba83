"""One run at a time in a run directory: a lock that a dead process does not hold."""

import contextlib
import logging
import os
import time
from pathlib import Path

from filelock import lock_descriptor

from chargpt.distributed.env import LOCK_FD_ENV
from chargpt.errors import UserError

log = logging.getLogger(__name__)

NAME = ".lock"
_held: dict[Path, int] = {}  # directory -> descriptor: the locks of this process
_created: set[Path] = set()  # those whose file was not there before


def acquire(directory: Path, patience: float = 1.0) -> None:
    """Locks a run directory until this process, and all that it hands the descriptor to, have ended.

    Args:
        directory: it exists.
        patience: seconds to wait for another process; `inf` for as long as it lives. Not 0, because who merely
            looks whether a lock is held holds it for a moment.

    Raises:
        UserError: another process trains there, or nothing may be written there.
    """
    path = directory.resolve()
    if path in _held or LOCK_FD_ENV in os.environ:
        return
    if not (path / NAME).exists():
        _created.add(path)
    try:
        descriptor = os.open(path / NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise UserError(f"{directory} cannot be written: {error.strerror}. Start a new run elsewhere") from error
    deadline = time.monotonic() + patience
    try:
        while not lock_descriptor(descriptor, blocking=False):
            if time.monotonic() > deadline:
                os.close(descriptor)
                raise UserError(
                    f"{directory} is being trained by another process. Wait for it, or start a new run elsewhere"
                )
            time.sleep(0.2)
    except OSError as error:  # some network file systems have no locks
        log.warning("%s cannot be locked (%s): take care that one process at a time trains there", directory, error)
    _held[path] = descriptor


def release(directory: Path) -> None:
    """Gives up the lock of this process on a directory; nothing happens if it has none."""
    if (descriptor := _held.pop(directory.resolve(), None)) is not None:
        os.close(descriptor)


def release_all() -> None:
    """Gives up every lock of this process."""
    while _held:
        os.close(_held.popitem()[1])
    _created.clear()


def release_and_remove_all() -> None:
    """Gives up every lock of this process and leaves no file where there was none: for when nothing came of it."""
    made = set(_created)
    release_all()
    for path in made:
        (path / NAME).unlink(missing_ok=True)


def file_descriptor(directory: Path) -> int:
    """The descriptor to hand to other processes, so that they hold the lock as well."""
    return _held[directory.resolve()]


def is_held_here(directory: Path) -> bool:
    """Whether it is this process that holds the lock."""
    return directory.resolve() in _held


def is_held(directory: Path) -> bool | None:
    """Whether a living process trains in the directory; None where no lock was ever taken, or none can be had."""
    with contextlib.suppress(OSError):
        descriptor = os.open(directory / NAME, os.O_RDWR | os.O_CLOEXEC)
        try:
            return not lock_descriptor(descriptor, blocking=False)
        finally:
            os.close(descriptor)
    return None
