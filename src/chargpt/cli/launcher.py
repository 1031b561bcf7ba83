"""Starts one process per device, forwards signals to them, and ends the run when one of them fails.

The parent process does not import torch. Each rank gets its number in LOCAL_RANK, as from torchrun.
"""

import os
import select
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import FrameType

from chargpt.config.raw_values import quote_value
from chargpt.distributed.env import (
    ERROR_PIPE_ENV,
    LOCK_FD_ENV,
    PARENT_PID_ENV,
    PARENT_SIGNALS,
    READY_PIPE_ENV,
    RENDEZVOUS_FILE_ENV,
    THREADS_ENV,
    forwarded_signals,
    parent_exited,
    read_report,
    set_handlers,
)
from chargpt.errors import ExitCode
from chargpt.invocation import arguments, child_command
from chargpt.runs import lock
from chargpt.runs.directory import RunDirectory
from chargpt.utils import threads

GRACE_SECONDS = 8.0  # after one rank has failed, time for the others to exit before they are killed
KILL_SECONDS = 3.0  # the time before they are killed after a second signal


@contextmanager
def block_signals() -> Iterator[None]:
    """Blocks stop signals in this context. A process started in it inherits the blocking until `unblock_signals`, so
    that no signal kills it before it has installed its handlers."""
    old_mask = signal.pthread_sigmask(signal.SIG_BLOCK, PARENT_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, old_mask)


def unblock_signals() -> None:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, PARENT_SIGNALS)


class WorkerGroup:
    """The processes of one run on this machine.

    Args:
        count: number of processes.
        resume: the directory of the run to resume, or `never`.
        directory: the run directory, locked by this process; the ranks inherit the lock.
        overrides: further ones for the ranks.

    Attributes:
        user_error: the error of the rank that was refused; empty if there is none, or before the end of `wait`.
    """

    def __init__(self, count: int, resume: str, directory: RunDirectory, overrides: Sequence[str] = ()):
        self._directory = directory
        self._logs = [directory.path / f"rank_{rank}.log" for rank in range(count)]
        directory.remove_temporary_files()
        replaced = ("resume=", "hydra.run.dir=")
        typed = [argument for argument in arguments() if not argument.lstrip("+").startswith(replaced)]
        overrides = [*typed, *overrides]
        overrides += [f"resume={quote_value(resume)}", f"hydra.run.dir={quote_value(str(directory.path))}"]
        descriptor = lock.file_descriptor(directory.path)
        self._folder = tempfile.TemporaryDirectory(prefix="chargpt-")
        environment = os.environ | {
            RENDEZVOUS_FILE_ENV: str(Path(self._folder.name) / "rendezvous"),
            LOCK_FD_ENV: str(descriptor),
            PARENT_PID_ENV: str(os.getpid()),
            THREADS_ENV: str(threads.choose(threads.measurement.measure(), threads.physical_processors(), count)),
        }
        self._command = [*child_command(), *overrides]
        self._environment, self._descriptor = environment, descriptor
        self._processes: list[subprocess.Popen] = []
        self._killed: set[int] = set()
        self.user_error = ""
        self._errors, self._error_pipe = os.pipe()
        environment[ERROR_PIPE_ENV] = str(self._error_pipe)
        self._signal = 0  # the last one received
        self._deadline = float("inf")  # when the remaining processes are killed
        self._ready, ready = os.pipe()
        self._handlers = set_handlers(dict.fromkeys(forwarded_signals(), self._forward_signal))
        self._start(0, {READY_PIPE_ENV: str(ready)}, [ready])
        os.close(ready)

    def _start(self, rank: int, environment: dict[str, str], descriptors: list[int]) -> None:
        # Rank 0 writes to the terminal, the others to a log file. Each rank has its own process group, so that it
        # receives a Ctrl-C at the terminal only once, forwarded by this process.
        with block_signals(), self._logs[rank].open("wb") if rank else nullcontext() as output:
            self._processes.append(
                subprocess.Popen(
                    self._command,
                    env=self._environment | environment | {"LOCAL_RANK": str(rank)},
                    stdout=output,
                    stderr=output,
                    pass_fds=[self._descriptor, self._error_pipe, *descriptors],
                    process_group=0,
                )
            )
        if self._signal:
            self._processes[-1].send_signal(self._signal)

    def _start_others_when_ready(self) -> None:
        """Starts the other ranks once rank 0 has built everything, so that only one process reports a user error."""
        if len(self._processes) == 1 and select.select([self._ready], [], [], 0)[0]:
            if os.read(self._ready, 1):
                for rank in range(1, len(self._logs)):
                    self._start(rank, {}, [])
            else:  # rank 0 has exited
                self._processes[0].wait()

    def wait(self) -> int:
        """Waits until all processes have exited; forwards signals, and kills the others after one has failed.

        Returns:
            The exit code of the run.
        """
        orphaned = False
        try:
            while None in (codes := [process.poll() for process in self._processes]):
                self._start_others_when_ready()
                exited = [code for code in codes if code is not None]
                # Rank 0 usually exits last, after writing the sample and the metrics.
                # A failed rank may never exit: under NCCL it can wait for the others.
                failed = any(exited) or bool(self._directory.first_rank_error())
                if failed or codes[0] is not None:
                    self._set_deadline(GRACE_SECONDS if failed else 5 * GRACE_SECONDS)
                if time.monotonic() > self._deadline:
                    self._kill()
                if not orphaned and parent_exited():
                    orphaned = True
                    if not self._signal:
                        self._forward_signal(signal.SIGTERM, None)
                time.sleep(0.05)
        finally:
            self._kill()
            self._folder.cleanup()
            os.close(self._ready)
            os.close(self._error_pipe)
            self.user_error = read_report(self._errors)
            set_handlers(self._handlers)
        for file in self._logs:
            if file.exists() and not file.stat().st_size:
                file.unlink()
        codes = [process.returncode for process in self._processes]
        if not any(codes):
            return ExitCode.DONE
        if self._signal or set(codes) <= {ExitCode.DONE, ExitCode.INTERRUPTED}:
            return ExitCode.INTERRUPTED
        return ExitCode.USER_ERROR if set(codes) <= {ExitCode.DONE, ExitCode.USER_ERROR} else ExitCode.FAILED

    def first_failure(self) -> str:
        """The rank that failed first and the reason; empty if the rank itself has reported it."""
        for rank, process in enumerate(self._processes):
            if process.returncode < 0 and rank not in self._killed:
                return f"rank {rank} was killed by {signal.Signals(-process.returncode).name}"
        if reason := self._directory.first_rank_error():
            return reason
        if self._directory.read_status()["state"] in ("diverged", "failed"):
            return ""
        codes = [process.returncode for process in self._processes]
        failed = next((rank for rank, code in enumerate(codes) if code > 0), None)
        return "a rank hung and was killed" if failed is None else f"rank {failed} exited with code {codes[failed]}"

    def _kill(self) -> None:
        for rank, process in enumerate(self._processes):
            if process.poll() is None:
                self._killed.add(rank)
                process.kill()
                process.wait()

    def _set_deadline(self, seconds: float) -> None:
        if self._deadline == float("inf"):
            self._deadline = time.monotonic() + seconds

    def _forward_signal(self, number: int, frame: FrameType | None) -> None:
        if self._signal:  # a rank that waits for another one in a C++ call handles no signals
            self._deadline = min(self._deadline, time.monotonic() + KILL_SECONDS)
        self._signal = signal.SIGTERM if number == signal.SIGHUP else number
        for process in self._processes:
            if process.poll() is None:
                process.send_signal(self._signal)
