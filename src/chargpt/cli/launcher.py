"""One process for each device: who starts them watches all of them alike, and ends the run when one dies.

The starter is the plain command itself, and imports no torch. Each rank is told its number as torchrun would.
"""

import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import FrameType

from chargpt.config.overrides import quoted
from chargpt.distributed.env import (
    ASKING,
    MEETING,
    MISTAKES,
    OURS,
    READY,
    STARTER,
    signals_to_pass_on,
    starter_is_gone,
)
from chargpt.errors import DONE, FAILED, INTERRUPTED, MISTAKE
from chargpt.runs import lock
from chargpt.runs.directory import RunDirectory

GRACE = 8.0  # seconds that the other ranks have to leave by themselves, once one is gone or has failed
LAST_GRACE = 3.0  # seconds that all have after a second signal


@contextmanager
def held_back() -> Iterator[None]:
    """Signals that come meanwhile wait until the end of it; and, in a process that is started in it, until
    `let_through`: nobody dies of one before he can handle it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ASKING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def let_through() -> None:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ASKING)


class Ranks:
    """The processes of one run on this machine.

    Args:
        count: how many.
        resume: what they go on with: a run, or `never`.
        directory: of the run; its lock is held by this process, and handed to them.
    """

    def __init__(self, count: int, resume: str, directory: RunDirectory):
        self._directory = directory
        self._logs = [directory.path / f"rank_{rank}.log" for rank in range(count)]
        directory.tidy()
        replaced = ("resume=", "hydra.run.dir=")
        words = [word for word in sys.argv[1:] if not word.lstrip("+").startswith(replaced)]
        words += [f"resume={quoted(resume)}", f"hydra.run.dir={quoted(str(directory.path))}"]
        descriptor = lock.descriptor_of(directory.path)
        self._folder = tempfile.TemporaryDirectory(prefix="chargpt-")
        environment = os.environ | {
            MEETING: str(Path(self._folder.name) / "meeting"),
            OURS: str(descriptor),
            STARTER: str(os.getpid()),
        }
        self._command = [sys.executable, sys.argv[0], *words]
        self._environment, self._descriptor = environment, descriptor
        self._processes: list[subprocess.Popen] = []
        self._killed: set[int] = set()
        self._mistakes = [int(os.environ[MISTAKES])] if MISTAKES in os.environ else []
        self._asked = 0  # the signal that came
        self._deadline = float("inf")  # when those that are left are killed
        self._ready, ready = os.pipe()
        self._handlers = {number: signal.signal(number, self._pass_on) for number in signals_to_pass_on()}
        self._start(0, {READY: str(ready)}, [ready])
        os.close(ready)

    def _start(self, rank: int, more: dict[str, str], descriptors: list[int]) -> None:
        # The first speaks to the terminal, the others to a file. Each has a process group of its own: a Ctrl-C at
        # the terminal reaches it once, from here.
        with held_back(), self._logs[rank].open("wb") if rank else nullcontext() as output:
            self._processes.append(
                subprocess.Popen(
                    self._command,
                    env=self._environment | more | {"LOCAL_RANK": str(rank)},
                    stdout=output,
                    stderr=output,
                    pass_fds=[self._descriptor, *descriptors, *self._mistakes],
                    process_group=0,
                )
            )
        if self._asked:
            self._processes[-1].send_signal(self._asked)

    def _start_others_when_ready(self) -> None:
        """Once the first has built everything and found no mistake: so that one process tells it, and at once."""
        if len(self._processes) == 1 and select.select([self._ready], [], [], 0)[0]:
            if os.read(self._ready, 1):
                for rank in range(1, len(self._logs)):
                    self._start(rank, {}, [])
            else:  # it has ended
                self._processes[0].wait()

    def wait(self) -> int:
        """Waits until all have ended, passes signals on, and puts an end to those that a dead one left.

        Returns:
            The exit code of the run.
        """
        asked = False
        try:
            while None in (codes := [process.poll() for process in self._processes]):
                self._start_others_when_ready()
                ended = [code for code in codes if code is not None]
                # The first one has more to do than the others: it writes the sample and the figures.
                # One that failed may never end: under NCCL it can wait for the others.
                failed = any(ended) or bool(self._directory.first_error())
                if failed or codes[0] is not None:
                    self._end_within(GRACE if failed else 5 * GRACE)
                if time.monotonic() > self._deadline:
                    self._kill()
                if not asked and starter_is_gone():
                    asked = True
                    if not self._asked:
                        self._pass_on(signal.SIGTERM, None)
                time.sleep(0.05)
        finally:
            self._kill()
            self._folder.cleanup()
            os.close(self._ready)
            for number, handler in self._handlers.items():
                signal.signal(number, handler)
        for file in self._logs:
            if file.exists() and not file.stat().st_size:
                file.unlink()
        codes = [process.returncode for process in self._processes]
        if not any(codes):
            return DONE
        if self._asked or set(codes) <= {DONE, INTERRUPTED}:
            return INTERRUPTED
        return MISTAKE if set(codes) <= {DONE, MISTAKE} else FAILED

    def cause(self) -> str:
        """The rank that died first, and of what; empty if the run has said so itself."""
        for rank, process in enumerate(self._processes):
            if process.returncode < 0 and rank not in self._killed:
                return f"rank {rank} was killed by {signal.Signals(-process.returncode).name}"
        if reason := self._directory.first_error():
            return reason
        if self._directory.read_status()["state"] in ("diverged", "failed"):
            return ""
        codes = [process.returncode for process in self._processes]
        bad = next((rank for rank, code in enumerate(codes) if code > 0), None)
        return "a rank hung and was killed" if bad is None else f"rank {bad} left with exit code {codes[bad]}"

    def _kill(self) -> None:
        for rank, process in enumerate(self._processes):
            if process.poll() is None:
                self._killed.add(rank)
                process.kill()
                process.wait()

    def _end_within(self, seconds: float) -> None:
        if self._deadline == float("inf"):
            self._deadline = time.monotonic() + seconds

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        if self._asked:  # a rank that waits for another one in a C++ call handles no signal
            self._deadline = min(self._deadline, time.monotonic() + LAST_GRACE)
        self._asked = signal.SIGTERM if number == signal.SIGHUP else number
        for process in self._processes:
            if process.poll() is None:
                process.send_signal(self._asked)
