"""Atomic file writes: after a crash, a file is either complete or absent."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from io import BufferedRandom
from pathlib import Path


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[BufferedRandom]:
    """Opens a file that replaces `path` atomically: readers see the old content or the new, never a partial file.

    The content goes to a temporary file in the same directory, which is flushed to disk and renamed. If an exception
    is raised, `path` is unchanged and the temporary file is removed. The file is opened for writing and reading.
    """
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    partial = Path(name)
    try:
        with os.fdopen(handle, "w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.chmod(0o644)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def atomic_write_text(path: Path, content: str) -> None:
    """Writes a text file in UTF-8, without conversion of line endings."""
    with atomic_write(path) as file:
        file.write(content.encode())
