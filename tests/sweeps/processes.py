"""Runs a sweep in the background, and kills it together with all its child processes."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

from tests.conftest import REPO

STARTED: list["Sweep"] = []  # killed at the end of each test


class Sweep:
    """`python train.py -m OVERRIDES` in the background, in `folder`."""

    def __init__(self, folder: Path, *overrides: str):
        self.mark = f"MARK={uuid.uuid4().hex}"
        name, _, value = self.mark.partition("=")
        self._log = (folder / f"{value}.txt").open("w+")
        self.process = subprocess.Popen(
            [sys.executable, str(REPO / "train.py"), "-m", *overrides],
            cwd=folder,
            env=os.environ | {name: value},
            stdout=self._log,
            stderr=self._log,
            start_new_session=True,
        )
        STARTED.append(self)

    def alive(self) -> list[int]:
        """The processes of this sweep, identified by a variable of their environment."""
        pids = []
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if self.mark.encode() in (folder / "environ").read_bytes():
                    pids.append(int(folder.name))
        return pids

    def kill(self) -> None:
        """Kills all processes (SIGKILL)."""
        while pids := self.alive():
            for pid in pids:
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
            self.process.poll()
            time.sleep(0.02)
        self.process.wait()

    def wait(self, timeout: float = 150) -> int:
        return self.process.wait(timeout)

    @property
    def output(self) -> str:
        self._log.seek(0)
        return self._log.read()


def steps_done(folder: Path) -> int:
    """The number of steps in the histories of all runs below `folder`."""
    return sum(len(file.read_bytes().splitlines()) - 1 for file in folder.rglob("history.csv"))


def finished(folder: Path) -> dict[str, Path]:
    """The finished runs below `folder`, by directory name."""
    return {file.parent.name: file.parent for file in folder.rglob("metrics.json")}


def losses(folder: Path) -> dict[str, float]:
    """`final_val_loss` of the finished runs, by directory name."""
    runs = finished(folder)
    return {name: json.loads((run / "metrics.json").read_text())["final_val_loss"] for name, run in runs.items()}


def modification_times(run: Path) -> dict[str, int]:
    """The modification time of each file of a run, in nanoseconds."""
    return {str(file): file.stat().st_mtime_ns for file in run.rglob("*") if file.is_file()}
