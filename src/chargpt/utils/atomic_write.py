"""Files that are whole or absent, whatever happens while they are written."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """A file to write `path` through, and to read back: others see the old content or the new, never a part.

    What is written goes to a temporary file beside `path`, which is flushed to the disk and renamed; when anything
    is raised meanwhile, `path` stays what it was and nothing is left.
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
    """Writes a text file, in UTF-8 and with its line ends as they are."""
    with atomic_write(path) as file:
        file.write(content.encode())
