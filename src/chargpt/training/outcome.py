"""Records an unsuccessful end of a run in status.json, and selects the exception for the command line."""

import contextlib
import os
from collections.abc import Callable, Iterator

from chargpt.distributed import env
from chargpt.errors import DivergenceError, ExitCode, Interrupted, TrainingError, TrialPruned, UserError, describe_error
from chargpt.invocation import command_line
from chargpt.training.callbacks.recorder import RunRecorder
from chargpt.training.setup import Run


class RollbackRequested(Exception):
    """Training must restart from the last good checkpoint, or from the start if there is none.

    Args:
        diverged_at: the steps at which the run has diverged so far.
    """

    def __init__(self, diverged_at: list[int]):
        self.diverged_at = diverged_at


@contextlib.contextmanager
def record_outcome(run: Run, recorder: RunRecorder) -> Iterator[None]:
    """Records an unsuccessful end of a run in status.json. Only rank 0 writes and reports it."""

    def write(state: str, reason: str) -> None:
        if run.trainer.is_global_zero:
            with contextlib.suppress(OSError, UserError):  # a full disk: the original error is raised
                recorder.open(run.trainer, run.module)
                run.directory.write_status(state, run.trainer.global_step, reason)

    try:
        yield
    except Interrupted:
        if run.trainer.is_global_zero:
            raise
        # The other ranks exit with 0: on any other code Lightning would kill rank 0.
    except RollbackRequested:
        raise
    except (DivergenceError, TrialPruned) as error:
        write("diverged" if isinstance(error, DivergenceError) else "pruned", str(error))
        if run.trainer.is_global_zero or not isinstance(error, DivergenceError):
            raise
    except BaseException as error:
        # A resumed run that has not completed a step is left unchanged.
        result = _write_outcome(run, error, write if recorder.is_open else lambda state, reason: None)
        if result is error:
            raise
        raise result from None
    finally:
        recorder.close()


def _write_outcome(run: Run, error: BaseException, write: Callable[[str, str], None]) -> BaseException:
    """Writes the outcome of the run. Returns the exception to raise."""
    command = command_line("train", f"resume={run.directory.path}")
    if isinstance(error, KeyboardInterrupt):  # before the first step, or after the last one, during sampling
        write("interrupted", "SIGINT")
        return Interrupted(f"interrupted. Resume with: {command}")
    if isinstance(error, SystemExit):  # a second Ctrl-C: Lightning has torn down and exits with 1
        if not isinstance(error.__context__, KeyboardInterrupt):
            return error
        if not run.trainer.is_global_zero:
            return SystemExit(ExitCode.INTERRUPTED)
        write("interrupted", "a second signal")
        hint = f"resume from the last checkpoint with: {command}"
        return Interrupted(f"quit immediately; {hint if run.directory.last.exists() else 'there is no checkpoint yet'}")
    if isinstance(error, TrainingError | UserError):
        write("failed", str(error))
        return error
    first_error = run.directory.first_rank_error()
    write("failed", first_error or describe_error(error))
    if first_error and env.LOCK_FD_ENV in os.environ and os.environ.get("HYDRA_FULL_ERROR") != "1":
        # The error is recorded, and the process that started the ranks reports the first one.
        return SystemExit(ExitCode.FAILED)
    return error
