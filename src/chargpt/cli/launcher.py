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

from chargpt.config.overrides import quote_value
from chargpt.distributed.env import (
    ERROR_PIPE_ENV,
    LOCK_FD_ENV,
    PARENT_PID_ENV,
    READY_PIPE_ENV,
    RENDEZVOUS_FILE_ENV,
    STOP_SIGNALS,
    forwarded_signals,
    parent_exited,
)
from chargpt.errors import ExitCode
from chargpt.runs import lock
from chargpt.runs.directory import RunDirectory

GRACE_SECONDS = 8.0  # seconds that the other ranks have to leave by themselves, once one is gone or has failed
KILL_SECONDS = 3.0  # seconds that all have after a second signal


@contextmanager
def block_signals() -> Iterator[None]:
    """Signals that come meanwhile wait until the end of it; and, in a process that is started in it, until
    `unblock_signals`: nobody dies of one before he can handle it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def unblock_signals() -> None:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)


class WorkerGroup:
    """The processes of one run on this machine.

    Args:
        count: how many.
        resume: what they go on with: a run, or `never`.
        directory: of the run; its lock is held by this process, and handed to them.
    """

    def __init__(self, count: int, resume: str, directory: RunDirectory):
        self._directory = directory
        self._logs = [directory.path / f"rank_{rank}.log" for rank in range(count)]
        directory.remove_temporary_files()
        replaced = ("resume=", "hydra.run.dir=")
        words = [word for word in sys.argv[1:] if not word.lstrip("+").startswith(replaced)]
        words += [f"resume={quote_value(resume)}", f"hydra.run.dir={quote_value(str(directory.path))}"]
        descriptor = lock.file_descriptor(directory.path)
        self._folder = tempfile.TemporaryDirectory(prefix="chargpt-")
        environment = os.environ | {
            RENDEZVOUS_FILE_ENV: str(Path(self._folder.name) / "meeting"),
            LOCK_FD_ENV: str(descriptor),
            PARENT_PID_ENV: str(os.getpid()),
        }
        self._command = [sys.executable, sys.argv[0], *words]
        self._environment, self._descriptor = environment, descriptor
        self._processes: list[subprocess.Popen] = []
        self._killed: set[int] = set()
        self._mistakes = [int(os.environ[ERROR_PIPE_ENV])] if ERROR_PIPE_ENV in os.environ else []
        self._asked = 0  # the signal that came
        self._deadline = float("inf")  # when those that are left are killed
        self._ready, ready = os.pipe()
        self._handlers = {number: signal.signal(number, self._forward_signal) for number in forwarded_signals()}
        self._start(0, {READY_PIPE_ENV: str(ready)}, [ready])
        os.close(ready)

    def _start(self, rank: int, more: dict[str, str], descriptors: list[int]) -> None:
        # The first speaks to the terminal, the others to a file. Each has a process group of its own: a Ctrl-C at
        # the terminal reaches it once, from here.
        with block_signals(), self._logs[rank].open("wb") if rank else nullcontext() as output:
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
                failed = any(ended) or bool(self._directory.first_rank_error())
                if failed or codes[0] is not None:
                    self._terminate(GRACE_SECONDS if failed else 5 * GRACE_SECONDS)
                if time.monotonic() > self._deadline:
                    self._kill()
                if not asked and parent_exited():
                    asked = True
                    if not self._asked:
                        self._forward_signal(signal.SIGTERM, None)
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
            return ExitCode.DONE
        if self._asked or set(codes) <= {ExitCode.DONE, ExitCode.INTERRUPTED}:
            return ExitCode.INTERRUPTED
        return ExitCode.USER_ERROR if set(codes) <= {ExitCode.DONE, ExitCode.USER_ERROR} else ExitCode.FAILED

    def first_failure(self) -> str:
        """The rank that died first, and of what; empty if the run has said so itself."""
        for rank, process in enumerate(self._processes):
            if process.returncode < 0 and rank not in self._killed:
                return f"rank {rank} was killed by {signal.Signals(-process.returncode).name}"
        if reason := self._directory.first_rank_error():
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

    def _terminate(self, seconds: float) -> None:
        if self._deadline == float("inf"):
            self._deadline = time.monotonic() + seconds

    def _forward_signal(self, number: int, frame: FrameType | None) -> None:
        if self._asked:  # a rank that waits for another one in a C++ call handles no signal
            self._deadline = min(self._deadline, time.monotonic() + KILL_SECONDS)
        self._asked = signal.SIGTERM if number == signal.SIGHUP else number
        for process in self._processes:
            if process.poll() is None:
                process.send_signal(self._asked)
