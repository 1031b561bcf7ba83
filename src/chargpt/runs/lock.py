"""The lock of a run directory: one process trains there at a time; the system releases it when the process exits."""

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
_created: set[Path] = set()  # directories whose lock file this process has created


def acquire(directory: Path, timeout: float = 1.0) -> None:
    """Locks a run directory until `release`, or until all processes that share the descriptor have exited.

    Args:
        directory: an existing directory.
        timeout: seconds to wait for another process; `inf` waits until it exits. Not 0 by default, because
            `is_held` holds the lock for a moment.

    Raises:
        UserError: another process is training in the directory, or the directory is not writable.
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
    deadline = time.monotonic() + timeout
    try:
        while not lock_descriptor(descriptor, blocking=False):
            if time.monotonic() > deadline:
                os.close(descriptor)
                raise UserError(
                    f"another process is training in {directory}. Wait for it, or start a new run elsewhere"
                )
            time.sleep(0.2)
    except OSError as error:  # some network file systems do not support locks
        log.warning("%s cannot be locked (%s): make sure that only one process trains there", directory, error)
    _held[path] = descriptor


def release(directory: Path) -> None:
    """Releases this process's lock on a directory, if it holds one."""
    if (descriptor := _held.pop(directory.resolve(), None)) is not None:
        os.close(descriptor)


def release_all() -> None:
    """Releases all locks of this process."""
    while _held:
        os.close(_held.popitem()[1])
    _created.clear()


def release_and_remove_all() -> None:
    """Releases all locks of this process and removes the lock files that it created: for a run that never started."""
    created = set(_created)
    release_all()
    for path in created:
        (path / NAME).unlink(missing_ok=True)


def file_descriptor(directory: Path) -> int:
    """The descriptor to pass to child processes, so that they hold the lock as well."""
    return _held[directory.resolve()]


def is_held_here(directory: Path) -> bool:
    """Whether this process holds the lock."""
    return directory.resolve() in _held


def is_held(directory: Path) -> bool | None:
    """Whether a running process holds the lock; None if there is no lock file, or locks are not supported."""
    with contextlib.suppress(OSError):
        descriptor = os.open(directory / NAME, os.O_RDWR | os.O_CLOEXEC)
        try:
            return not lock_descriptor(descriptor, blocking=False)
        finally:
            os.close(descriptor)
    return None
