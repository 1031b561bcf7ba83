"""Which of several processes this one is, and who started it."""

import contextlib
import ctypes
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any, NoReturn

from chargpt.errors import ExitCode

PARENT_PID_ENV = "CHARGPT_PARENT_PID"  # the process that started this one and waits for it
LOCK_FD_ENV = "CHARGPT_LOCK_FD"  # set for ranks that we have started ourselves: the descriptor of the lock they share
SWEEP_ENV = "CHARGPT_SWEEP"  # set for the jobs of a sweep
ERROR_PIPE_ENV = "CHARGPT_ERROR_PIPE"  # the pipe to whoever wants to know why a job was refused
RENDEZVOUS_FILE_ENV = (
    "CHARGPT_RENDEZVOUS_FILE"  # set for ranks that we have started ourselves: the file by which they find each other
)
READY_PIPE_ENV = (
    "CHARGPT_READY_PIPE"  # the pipe by which the first rank says that nothing is wrong, and the others may start
)
# Signals that ask a process to stop; the last is Slurm's, before the end of a job's time.
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
PR_SET_PDEATHSIG = 1  # of prctl(2)
received_signals: list[int] = []  # signals that asked this process to stop before its run was under way


def request_stop(number: int, frame: object) -> None:
    """A signal's handler while torch is imported and a run prepared. The exception may be lost in somebody's
    `except:`; then the run stops at its first step."""
    received_signals.append(number)
    raise KeyboardInterrupt


def forwarded_signals() -> list[signal.Signals]:
    """To the processes that this one has started: all but a hang-up that `nohup` has it ignore, and a SIGUSR1 that
    a launcher waits for itself."""
    ours = {
        signal.SIGHUP: lambda now: now is not signal.SIG_IGN,
        signal.SIGUSR1: lambda now: now is signal.SIG_DFL,
    }
    return [n for n in STOP_SIGNALS if n not in ours or ours[n](signal.getsignal(n))]


def launched_as_rank() -> bool:
    """Whether this process is one of several that somebody has started: we, torchrun, or srun."""
    return "LOCAL_RANK" in os.environ or launched_by_srun()


def launched_by_torchrun() -> bool:
    return "TORCHELASTIC_RUN_ID" in os.environ and LOCK_FD_ENV not in os.environ


def launched_by_srun() -> bool:
    """Slurm's variables stand around in every process of a job; several tasks are what srun has started."""
    several = int(os.environ.get("SLURM_NTASKS", "1")) > 1 and "SLURM_PROCID" in os.environ
    return several and LOCK_FD_ENV not in os.environ and not launched_by_torchrun()


def get_rank() -> int:
    """The rank of this process among all of its run."""
    names = ("SLURM_PROCID",) if launched_by_srun() else ("RANK", "LOCAL_RANK") if launched_as_rank() else ()
    return next((int(os.environ[name]) for name in names if name in os.environ), 0)


def notify_ready() -> None:
    """Lets the other ranks start, if somebody waits with them; done once."""
    if (pipe := os.environ.pop(READY_PIPE_ENV, None)) is not None:
        with contextlib.suppress(BrokenPipeError):  # he is gone: the run will see it, save itself and leave
            os.write(int(pipe), b"1")
        os.close(int(pipe))


def report_to_parent(mistake: str) -> None:
    """Hands a mistake to whoever started this process and wants to know it."""
    if (pipe := os.environ.get(ERROR_PIPE_ENV)) is not None:
        with contextlib.suppress(OSError):
            os.write(int(pipe), mistake.encode(errors="replace")[:4000])


def num_processes(devices: Any) -> int | None:
    """How many `trainer.devices` means: a number, a list, or a list as text; None where the machine decides."""
    if isinstance(devices, str) and "," in devices:
        return len([device for device in devices.split(",") if device])
    if isinstance(devices, Sequence) and not isinstance(devices, str):
        return len(devices)
    if str(devices) in ("auto", "-1"):
        return None
    return int(str(devices)) if str(devices).isdecimal() else 1  # what it cannot be, Lightning says


def exit_process(code: int) -> NoReturn:
    """Ends this process with an exit code.

    As long as it belongs to a process group, without the clean-up at exit: under NCCL that waits for the other
    ranks, which may be waiting for this one.
    """
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        logging.shutdown()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)
    sys.exit(code)


def exit_with_parent(grace: float = 60.0) -> None:
    """Ends this process after the one that started it: by SIGTERM, which saves the run (Linux), then by force.

    A rank that waits in a C++ call for another one handles no signal: for it there is a thread.

    Args:
        grace: seconds that the run has to save itself.
    """
    if sys.platform == "linux":
        with contextlib.suppress(AttributeError, OSError):
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)

    def watch() -> None:
        while not parent_exited():
            time.sleep(1.0)
        time.sleep(grace)
        os._exit(ExitCode.INTERRUPTED)

    threading.Thread(target=watch, name="parent watch", daemon=True).start()


def parent_exited() -> bool:
    """Whether the process that started this one, to wait for it, has ended: then nobody wants the rest."""
    return PARENT_PID_ENV in os.environ and os.getppid() != int(os.environ[PARENT_PID_ENV])
