"""A disk that fills while a run writes on it: a small tmpfs, with ballast that leaves less and less room."""

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SIZE = 24  # MiB; a checkpoint of the run takes about 2
# KiB that are left when a part begins: for nothing, a directory, the first words, a checkpoint or a few.
ROOMS = (0, 8, 40, 200, 400, 800, 1200, 1600, 2000, 12)


@contextmanager
def small(place: Path) -> Iterator[None]:
    """A disk of `SIZE` at `place`, which is made for it.

    Raises:
        subprocess.CalledProcessError: nothing may be mounted here (it takes a superuser on Linux).
    """
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE}m", "tmpfs", str(place)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", str(place)], check=True)


def filled(home: Path, words: list[str], part: Callable[..., subprocess.CompletedProcess]) -> Iterator[dict[str, Any]]:
    """A row for each part that ran into the full disk; the run is `home`."""
    for number, room in enumerate(ROOMS, 1):
        ballast, free = home.parent / "ballast", os.statvfs(home.parent)
        with ballast.open("wb") as file:
            file.write(b"\0" * max(0, free.f_bavail * free.f_frsize - room * 1024))
        done = part(home, words)
        ballast.unlink()
        lines = done.stderr.strip().splitlines()
        good = done.returncode in (1, 2) and "Traceback" not in done.stderr
        yield {"cut": number, "place": f"{room} KiB free", "step": "", "rank": 0} | {
            "where": lines[-1].replace(str(home.parent), "DISK") if lines else "",
            "exit code": done.returncode,
            "as it should": "yes" if good else "no",
        }
