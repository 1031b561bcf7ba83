"""The rank of this process, its parent process, and the environment variables and signals between them."""

import contextlib
import ctypes
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from chargpt.errors import ExitCode

PARENT_PID_ENV = "CHARGPT_PARENT_PID"  # the process that has started this one and waits for it
LOCK_FD_ENV = "CHARGPT_LOCK_FD"  # file descriptor of the lock that ranks of `WorkerGroup` share
SWEEP_ENV = "CHARGPT_SWEEP"  # set for the jobs of a sweep
ERROR_PIPE_ENV = "CHARGPT_ERROR_PIPE"  # pipe to the parent process for the message of a user error
RENDEZVOUS_FILE_ENV = "CHARGPT_RENDEZVOUS_FILE"  # file for the rendezvous of ranks of `WorkerGroup`
THREADS_ENV = "CHARGPT_THREADS"  # the number of threads of each rank of `WorkerGroup`
READY_PIPE_ENV = "CHARGPT_READY_PIPE"  # pipe through which rank 0 reports that the other ranks may start
# Signals after which a run saves and exits; Slurm sends the last one before the time limit of a job.
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
# Signals that end the parent process of ranks.
PARENT_SIGNALS = (*STOP_SIGNALS, signal.SIGHUP)
PR_SET_PDEATHSIG = 1  # of prctl(2)
received_signals: list[int] = []  # stop signals received before training has its handlers


def defer_stop(number: int, frame: object) -> None:
    """The signal handler during the imports of libraries, which an exception could leave in a state in which Python
    recurses without end or C++ code aborts. The second signal is not deferred."""
    received_signals.append(number)
    if len(received_signals) > 1:
        raise KeyboardInterrupt


def request_stop(number: int, frame: object) -> None:
    """The signal handler during set-up. If a library catches the exception, the run stops at its first
    step."""
    received_signals.append(number)
    raise KeyboardInterrupt


def forwarded_signals() -> list[signal.Signals]:
    """The signals to forward to child processes: `PARENT_SIGNALS` except a SIGHUP that is ignored (`nohup`) and a
    SIGUSR1 that a launcher handles."""
    conditions = {
        signal.SIGHUP: lambda handler: handler is not signal.SIG_IGN,
        signal.SIGUSR1: lambda handler: handler is signal.SIG_DFL,
    }
    return [n for n in PARENT_SIGNALS if n not in conditions or conditions[n](signal.getsignal(n))]


def set_handlers(handlers: Mapping[int, Any]) -> dict[int, Any]:
    """Sets signal handlers, and returns the previous ones. Does nothing in a thread: only the main thread may."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    return {number: signal.signal(number, handler) for number, handler in handlers.items()}


def launched_as_rank() -> bool:
    """Whether this process is a rank started by `WorkerGroup`, torchrun or srun."""
    return "LOCAL_RANK" in os.environ or launched_by_srun()


def launched_by_torchrun() -> bool:
    return "TORCHELASTIC_RUN_ID" in os.environ and LOCK_FD_ENV not in os.environ


def launched_by_srun() -> bool:
    """Whether srun has started this process as one of several tasks.

    Other variables of Slurm are also set in a batch script and in an interactive shell, which have no other tasks.
    """
    in_step = "SLURM_STEP_ID" in os.environ and "SLURM_PROCID" in os.environ
    return in_step and num_tasks() > 1 and LOCK_FD_ENV not in os.environ and not launched_by_torchrun()


def num_tasks() -> int:
    """The number of tasks of the Slurm step of this process."""
    return int(os.environ.get("SLURM_STEP_NUM_TASKS") or os.environ.get("SLURM_NTASKS") or 1)


def get_rank() -> int:
    """The global rank of this process."""
    names = ("SLURM_PROCID",) if launched_by_srun() else ("RANK", "LOCAL_RANK") if launched_as_rank() else ()
    return next((int(os.environ[name]) for name in names if name in os.environ), 0)


def notify_ready() -> None:
    """Reports to the parent process, once, that the other ranks may start."""
    if (pipe := os.environ.pop(READY_PIPE_ENV, None)) is not None:
        with contextlib.suppress(BrokenPipeError):  # the parent has exited: the run will save a checkpoint and exit
            os.write(int(pipe), b"1")
        os.close(int(pipe))


def report_to_parent(message: str) -> None:
    """Sends an error message to the parent process if it has opened a pipe for it."""
    if (pipe := os.environ.get(ERROR_PIPE_ENV)) is not None:
        with contextlib.suppress(OSError):
            os.write(int(pipe), message.encode(errors="replace")[:4000] + b"\0")


def read_report(pipe: int) -> str:
    """Closes the reading end of the pipe of `report_to_parent`. Returns the first message; empty if there is none."""
    with os.fdopen(pipe, "rb") as file:
        os.set_blocking(pipe, False)
        return (file.read() or b"").partition(b"\0")[0].decode(errors="replace")


def num_processes(devices: Any) -> int | None:
    """The number of processes for `trainer.devices` (a number or a list); None if it depends on the machine."""
    if isinstance(devices, str) and "," in devices:
        return len([device for device in devices.split(",") if device])
    if isinstance(devices, Sequence) and not isinstance(devices, str):
        return len(devices)
    if str(devices) in ("auto", "-1"):
        return None
    return int(str(devices)) if str(devices).isdecimal() else 1  # Lightning reports invalid values


def exit_process(code: int) -> NoReturn:
    """Exits with this code, without clean-up if a process group exists.

    With NCCL the clean-up waits for the other ranks, which may be waiting for this one.
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
    """Makes this process exit after its parent: on Linux by SIGTERM, which saves the run, and later by `os._exit`.

    The thread that calls `os._exit` is needed for a rank that waits in a C++ call and handles no signals.

    Args:
        grace: seconds to save a checkpoint.
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
    """Whether the process that has started this one and waits for it has exited."""
    return PARENT_PID_ENV in os.environ and os.getppid() != int(os.environ[PARENT_PID_ENV])
