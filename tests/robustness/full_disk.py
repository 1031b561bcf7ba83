"""A disk that runs full while a run writes to it: a small tmpfs, and a file that takes up most of its space."""

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SIZE = 24  # MiB; a checkpoint of the run takes about 2
# KiB of free space when a process starts: enough for nothing, a directory, the first lines, one or a few checkpoints.
FREE_SPACE = (0, 8, 40, 200, 400, 800, 1200, 1600, 2000, 12)


@contextmanager
def small_disk(mount_point: Path) -> Iterator[None]:
    """Creates `mount_point` and mounts a tmpfs of `SIZE` MiB there.

    Raises:
        subprocess.CalledProcessError: the mount failed (it requires root on Linux).
    """
    mount_point.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE}m", "tmpfs", str(mount_point)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", str(mount_point)], check=True)


def fill_disk(
    run: Path, overrides: list[str], train: Callable[[Path, list[str]], subprocess.CompletedProcess]
) -> Iterator[dict[str, Any]]:
    """Starts or resumes the run in `run` once per entry of `FREE_SPACE`; yields a row of faults.csv for each."""
    disk = run.parent
    for number, free_kib in enumerate(FREE_SPACE, 1):
        ballast, status = disk / "ballast", os.statvfs(disk)
        with ballast.open("wb") as file:
            file.write(b"\0" * max(0, status.f_bavail * status.f_frsize - free_kib * 1024))
        process = train(run, overrides)
        ballast.unlink()
        lines = process.stderr.strip().splitlines()
        expected = process.returncode in (1, 2) and "Traceback" not in process.stderr
        yield {"fault": number, "place": f"{free_kib} KiB free", "step": "", "rank": 0} | {
            "detail": lines[-1].replace(str(disk), "DISK") if lines else "",
            "exit code": process.returncode,
            "as expected": "yes" if expected else "no",
        }
