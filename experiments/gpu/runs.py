"""Runs commands and functions in child processes that are forked after torch is imported."""

from __future__ import annotations

import atexit
import contextlib
import csv
import json
import os
import re
import runpy
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from cases import ROOT, Failure


class RunContext:
    """The attributes of a stage that its runs use.

    Attributes:
        work: the parent folder of the runs.
        lock_descriptor: file descriptor of the stage's lock, which runs must not inherit.
        can_fork: whether runs may be forks of this process; otherwise they start a new interpreter.
    """

    def __init__(self, name: str, work: Path, lock_descriptor: int):
        self.name, self.work, self.lock_descriptor = name, work, lock_descriptor
        self.can_fork = True


class Run:
    """`python train.py OVERRIDES` (or another command) in a folder of its own.

    Args:
        overrides: arguments of the command; for `train` without `directory`, the run directory is added.
        directory: the run directory, if it is outside this folder.
        threads: threads of torch; None for the default.
        work: a function to call instead of the command; its result is written to `result.json` in the folder.

    Attributes:
        code: exit code; negative for a signal; None after a timeout.
        seconds: duration of the process.
    """

    def __init__(
        self,
        context: RunContext,
        name: str,
        overrides: Iterable[str] = (),
        command: str = "train",
        directory: Path | None = None,
        threads: int | None = None,
        timeout: float = 120.0,
        work: Callable[[], dict[str, Any]] | None = None,
        **environment: str,
    ):
        self.name, self.command, self.timeout, self._context = name, command, timeout, context
        self.folder = context.work / re.sub(r"\W+", "_", name)
        self.directory = directory or self.folder / "run"
        self.overrides = list(overrides)
        if command == "train" and directory is None:
            self.overrides.append(f"hydra.run.dir={self.directory}")
        self.threads, self.environment, self._work = threads, environment, work
        self.out, self.err = self.folder / "out.txt", self.folder / "err.txt"
        self.code: int | None = None
        self.seconds = 0.0
        self.pid = 0

    def start(self) -> Run:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._start = time.monotonic()
        self.pid = fork(self._execute, self._context.lock_descriptor)
        return self

    def _execute(self) -> int:
        """Runs the command in the child process; returns its exit code."""
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for number, path in ((1, self.out), (2, self.err)):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), number)
        os.chdir(self.folder)
        os.environ |= self.environment
        script = str(ROOT / f"{self.command}.py")
        if self.threads:
            os.environ["OMP_NUM_THREADS"] = str(self.threads)
        if not self._context.can_fork and not self._work:
            os.execv(sys.executable, [sys.executable, script, *self.overrides])
        if self.threads:
            import torch  # noqa: PLC0415 - run.py imports the kit without torch

            torch.set_num_threads(self.threads)
        if self._work:
            (self.folder / "result.json").write_text(json.dumps(self._work()))
            return 0
        sys.argv = [script, *self.overrides]
        runpy.run_path(script, run_name="__main__")
        return 0

    def poll(self) -> bool:
        """Whether the process has ended. Kills it after the timeout."""
        if not self.pid:
            return True
        ended, status = os.waitpid(self.pid, os.WNOHANG)
        self.seconds = time.monotonic() - self._start
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
        """Raises `Failure` if the exit code is not `code`."""
        if self.code != code:
            outcome = f"timeout after {self.timeout:.0f} s" if self.code is None else f"exit code {self.code}"
            tail = self.err.read_text(errors="replace")[-4000:] if self.err.exists() else ""
            sys.stderr.write(f"\n--- {self._context.name}: {self.name}: {outcome}\n{tail}\n")  # goes to run.log
            raise Failure(f"{self.name}: {outcome}: {self.last_line()}")
        return self

    def last_line(self) -> str:
        """The last line of standard error."""
        lines = self.err.read_text(errors="replace").split("\n") if self.err.exists() else []
        return next((line.strip() for line in reversed(lines) if line.strip()), "no error output")

    def history(self, column: str) -> dict[int, float]:
        """One column of history.csv: step -> value."""
        with (self.directory / "history.csv").open(newline="") as file:
            return {int(row["step"]): float(row[column]) for row in csv.DictReader(file) if row[column]}

    def json(self, name: str) -> dict[str, Any]:
        return json.loads((self.directory / f"{name}.json").read_text())

    def result(self) -> dict[str, Any]:
        """The result of `work`."""
        return json.loads((self.folder / "result.json").read_text())

    def checkpoint(self, name: str = "last") -> dict[str, Any]:
        import torch  # noqa: PLC0415 - run.py imports the kit without torch

        path = self.directory / "checkpoints" / f"{name}.ckpt"
        return torch.load(path, weights_only=True, map_location="cpu")


def run_all(runs: Iterable[Run], slots: int | None = None, done: Callable[[Run], None] | None = None) -> list[Run]:
    """Starts the runs, several in parallel, and waits for all. The cores are divided among parallel runs.

    Args:
        slots: number of parallel runs; by default the number of cores, at most 8.
        done: called with each run when it ends.
    """
    runs, running = list(runs), []
    cores = os.cpu_count() or 1
    slots = slots or min(cores, 8)
    for run in runs:
        run.threads = run.threads or max(1, cores // min(slots, len(runs)))
    waiting = list(runs)
    while waiting or running:
        while waiting and len(running) < slots:
            running.append(waiting.pop(0).start())
        for run in [run for run in running if run.poll()]:
            running.remove(run)
            if done:
                done(run)
        time.sleep(0.01)
    return runs


def fork(work: Callable[[], int | None], lock_descriptor: int) -> int:
    """Calls `work` in a child process, which exits with its result; returns the child's process id."""
    sys.stdout.flush()
    sys.stderr.flush()
    if child := os.fork():
        return child
    code = 1
    try:
        os.close(lock_descriptor)  # the lock must be released when the stage ends
        code = work() or 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(BaseException):  # what the interpreter does at exit
            threading._shutdown()
            atexit._run_exitfuncs()
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def run_in_child(
    context: RunContext, name: str, work: Callable[[], dict[str, Any]], timeout: float = 100.0
) -> dict[str, Any]:
    """Calls `work` in a child process and returns its result. Raises `Failure` after an error or a timeout."""
    if not context.can_fork:
        return work()
    return Run(context, name, timeout=timeout, work=work).start().wait().check().result()


def kill_tree(pid: int) -> None:
    """Kills a process and its descendants."""
    for process in (*descendants(pid), pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


def descendants(pid: int) -> list[int]:
    """Process ids of all descendants; empty on systems without /proc."""
    children_of: dict[int, list[int]] = {}
    for file in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            parent = int(file.read_text().rpartition(")")[2].split()[1])
            children_of.setdefault(parent, []).append(int(file.parent.name))
    result, queue = [], [pid]
    while queue:
        children = children_of.get(queue.pop(), [])
        result += children
        queue += children
    return result
