"""A sweep as a process that can be found and killed with all that it has started."""

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

STARTED: list["Sweep"] = []  # for whoever cleans up after a test


class Sweep:
    """`python train.py -m ...` in the background, in `folder`."""

    def __init__(self, folder: Path, *words: str):
        self.mark = f"MARK={uuid.uuid4().hex}"
        name, _, value = self.mark.partition("=")
        self.output = (folder / f"{value}.txt").open("w+")
        self.process = subprocess.Popen(
            [sys.executable, str(REPO / "train.py"), "-m", *words],
            cwd=folder,
            env=os.environ | {name: value},
            stdout=self.output,
            stderr=self.output,
            start_new_session=True,
        )
        STARTED.append(self)

    def alive(self) -> list[int]:
        """The processes of this sweep, by the mark in their environment."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if self.mark.encode() in (folder / "environ").read_bytes():
                    found.append(int(folder.name))
        return found

    def kill(self) -> None:
        """kill -9 for all of them, until none is left."""
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
        self.output.seek(0)
        return self.output.read()


def steps_done(folder: Path) -> int:
    """Steps that all the runs below `folder` have logged."""
    return sum(len(file.read_bytes().splitlines()) - 1 for file in folder.rglob("history.csv"))


def finished(folder: Path) -> dict[str, Path]:
    """The finished runs below `folder`, by the name of their home."""
    return {file.parent.name: file.parent for file in folder.rglob("metrics.json")}


def losses(folder: Path) -> dict[str, float]:
    """`final_val_loss` of the finished runs, by the name of their home."""
    runs = finished(folder)
    return {name: json.loads((run / "metrics.json").read_text())["final_val_loss"] for name, run in runs.items()}


def touched(run: Path) -> dict[str, int]:
    """When each file of a run was last changed; the lock is taken by whoever looks."""
    return {str(file): file.stat().st_mtime_ns for file in run.rglob("*") if file.is_file()}
