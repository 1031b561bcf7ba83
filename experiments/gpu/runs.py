"""Runs of the command line, and other work, in child processes that have imported torch already."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import re
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cases import ROOT, Failure

if TYPE_CHECKING:
    from kit import Stage


class Run:
    """`python train.py WORDS` (or another verb), in a folder of its own under the stage's.

    Args:
        words: where none of them is `resume=`, the run directory is added.
        directory: of the run, where it is another's.
        threads: of torch; None for as many as there are cores.
        work: what the process does instead; its figures go to `result.json` in the folder.

    Attributes:
        code: exit code; negative for a signal; None for a run that took too long.
        seconds: from the start of its process to its end.
    """

    def __init__(
        self,
        stage: Stage,
        name: str,
        words: Iterable[str] = (),
        verb: str = "train",
        directory: Path | None = None,
        threads: int | None = None,
        timeout: float = 120.0,
        work: Callable[[], dict[str, Any]] | None = None,
        **environment: str,
    ):
        self.name, self.verb, self.timeout, self._stage = name, verb, timeout, stage
        self.folder = stage.work / re.sub(r"\W+", "_", name)
        self.directory = directory or self.folder / "run"
        self.words = list(words)
        if verb == "train" and directory is None:
            self.words.append(f"hydra.run.dir={self.directory}")
        self.threads, self.environment, self._work = threads, environment, work
        self.out, self.err = self.folder / "out.txt", self.folder / "err.txt"
        self.code: int | None = None
        self.seconds = 0.0
        self.pid = 0

    def start(self) -> Run:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._began = time.monotonic()
        self.pid = fork(self._become, self._stage)
        return self

    def _become(self) -> int:
        """The child process becomes the verb's; its exit code."""
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for number, path in ((1, self.out), (2, self.err)):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), number)
        os.chdir(self.folder)
        os.environ |= self.environment
        script = str(ROOT / f"{self.verb}.py")
        if self.threads:
            os.environ["OMP_NUM_THREADS"] = str(self.threads)
        if not self._stage.forks and not self._work:
            os.execv(sys.executable, [sys.executable, script, *self.words])
        if self.threads:
            import torch

            torch.set_num_threads(self.threads)
        if self._work:
            (self.folder / "result.json").write_text(json.dumps(self._work()))
            return 0
        import runpy

        sys.argv = [script, *self.words]
        runpy.run_path(script, run_name="__main__")
        return 0

    def poll(self) -> bool:
        """Whether it has ended; one that takes too long is killed."""
        if not self.pid:
            return True
        ended, status = os.waitpid(self.pid, os.WNOHANG)
        self.seconds = time.monotonic() - self._began
        if ended:
            self.code, self.pid = os.waitstatus_to_exitcode(status), 0
        elif self.seconds > self.timeout:
            self.kill()
        return not self.pid

    def kill(self) -> None:
        if self.pid:
            kill_tree(self.pid)
            os.waitpid(self.pid, 0)
            self.pid = 0

    def wait(self) -> Run:
        while not self.poll():
            time.sleep(0.01)
        return self

    def check(self, code: int = 0) -> Run:
        """Raises `Failure` if it ended otherwise than with `code`."""
        if self.code != code:
            ended = f"took more than {self.timeout:.0f} s" if self.code is None else f"exit code {self.code}"
            tail = self.err.read_text(errors="replace")[-4000:] if self.err.exists() else ""
            sys.stderr.write(f"\n--- {self._stage.name}: {self.name}: {ended}\n{tail}\n")  # for run.log
            raise Failure(f"{self.name}: {ended}: {self.last_line()}")
        return self

    def last_line(self) -> str:
        """The last that it wrote to standard error."""
        lines = self.err.read_text(errors="replace").split("\n") if self.err.exists() else []
        return next((line.strip() for line in reversed(lines) if line.strip()), "it wrote nothing")

    def history(self, column: str) -> dict[int, float]:
        """Step -> value, of one column of history.csv."""
        with (self.directory / "history.csv").open(newline="") as file:
            return {int(row["step"]): float(row[column]) for row in csv.DictReader(file) if row[column]}

    def json(self, name: str) -> dict[str, Any]:
        return json.loads((self.directory / f"{name}.json").read_text())

    def result(self) -> dict[str, Any]:
        """Of `work`."""
        return json.loads((self.folder / "result.json").read_text())

    def checkpoint(self, name: str = "last") -> dict[str, Any]:
        import torch

        path = self.directory / "checkpoints" / f"{name}.ckpt"
        return torch.load(path, weights_only=True, map_location="cpu")


def together(runs: Iterable[Run], slots: int | None = None, done: Callable[[Run], None] | None = None) -> list[Run]:
    """Starts the runs, several at a time, and waits for all.

    Args:
        slots: how many at a time; by default one a core, and 8 at most. Each then has its share of the cores.
        done: called with each run as it ends.
    """
    runs, live = list(runs), []
    cores = os.cpu_count() or 1
    slots = slots or min(cores, 8)
    for run in runs:
        run.threads = run.threads or max(1, cores // min(slots, len(runs)))
    waiting = list(runs)
    while waiting or live:
        while waiting and len(live) < slots:
            live.append(waiting.pop(0).start())
        for run in [run for run in live if run.poll()]:
            live.remove(run)
            if done:
                done(run)
        time.sleep(0.01)
    return runs


def fork(work: Callable[[], int | None], stage: Stage | None = None) -> int:
    """Runs `work` in a child process, whose exit code is what it returns; the child's process id."""
    sys.stdout.flush()
    sys.stderr.flush()
    if child := os.fork():
        return child
    code = 1
    try:
        if stage is not None:  # the lock is the stage's alone, and ends with it
            os.close(stage._lock)
        code = work() or 0
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else int(left.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(BaseException):  # as the interpreter ends
            import atexit
            import threading

            threading._shutdown()
            atexit._run_exitfuncs()
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def measured(stage: Stage, name: str, work: Callable[[], dict[str, Any]], timeout: float = 100.0) -> dict[str, Any]:
    """What `work` returns in a child process. Raises `Failure` if it fails, or takes too long."""
    if not stage.forks:
        return work()
    return Run(stage, name, timeout=timeout, work=work).start().wait().check().result()


def kill_tree(pid: int) -> None:
    """Kills a process and all that it started."""
    for each in (*descendants(pid), pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(each, signal.SIGKILL)


def descendants(pid: int) -> list[int]:
    """The processes below one, where there is a /proc."""
    parents: dict[int, list[int]] = {}
    for file in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            parents.setdefault(int(file.read_text().rpartition(")")[2].split()[1]), []).append(int(file.parent.name))
    found, todo = [], [pid]
    while todo:
        children = parents.get(todo.pop(), [])
        found += children
        todo += children
    return found
