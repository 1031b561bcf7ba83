"""How a run ended that did not end well: its state in status.json, and what the user reads."""

import contextlib
import os
import shlex
from collections.abc import Callable, Iterator

from chargpt.distributed import env
from chargpt.errors import DivergenceError, ExitCode, Interrupted, TrainingError, TrialPruned, UserError
from chargpt.training.callbacks.recorder import RunRecorder
from chargpt.training.setup import Run


class RollbackRequested(Exception):
    """To the last good checkpoint, or to the beginning where there is none.

    Args:
        diverged_at: the steps at which the run has diverged so far.
    """

    def __init__(self, diverged_at: list[int]):
        self.diverged_at = diverged_at


@contextlib.contextmanager
def record_outcome(run: Run, record: RunRecorder) -> Iterator[None]:
    """Writes down in status.json how a run ended that did not end well. Rank 0 speaks for all."""

    def write(state: str, reason: str) -> None:
        if run.trainer.is_global_zero:
            with contextlib.suppress(OSError, UserError):  # a full disk has the error's own words
                record.open(run.trainer, run.module)
                run.directory.write_status(state, run.trainer.global_step, reason)

    try:
        yield
    except Interrupted:
        if run.trainer.is_global_zero:
            raise
        # The others leave in silence: a code other than 0 would have Lightning kill rank 0.
    except RollbackRequested:
        raise
    except (DivergenceError, TrialPruned) as error:
        write("diverged" if isinstance(error, DivergenceError) else "pruned", str(error))
        if run.trainer.is_global_zero or not isinstance(error, DivergenceError):
            raise
    except BaseException as error:
        # A run that was to go on and has not done a step is left as it was.
        told = _write_outcome(run, error, write if record.is_open else lambda state, reason: None)
        if told is error:
            raise
        raise told from None
    finally:
        record.close()


def _write_outcome(run: Run, error: BaseException, write: Callable[[str, str], None]) -> BaseException:
    """Has the end of the run written down. Returns what is to be raised for it."""
    go_on = f"python train.py {shlex.quote(f'resume={run.directory.path}')}"
    if isinstance(error, KeyboardInterrupt):  # before the first step, or after the last, while the sample is drawn
        write("interrupted", "SIGINT")
        return Interrupted(f"interrupted. Go on with: {go_on}")
    if isinstance(error, SystemExit):  # a second Ctrl-C: Lightning has torn itself down and leaves with 1
        if not isinstance(error.__context__, KeyboardInterrupt):
            return error
        if not run.trainer.is_global_zero:
            return SystemExit(ExitCode.INTERRUPTED)
        write("interrupted", "a second signal")
        saved = f"go on from the last checkpoint with: {go_on}"
        return Interrupted(f"quit; {saved if run.directory.last.exists() else 'it had no checkpoint yet'}")
    if isinstance(error, TrainingError | UserError):
        write("failed", str(error))
        return error
    first = run.directory.first_rank_error()
    write("failed", first or f"{type(error).__name__}: {error}".splitlines()[0])
    if first and env.LOCK_FD_ENV in os.environ and os.environ.get("HYDRA_FULL_ERROR") != "1":
        # It is written down, and the process that started the ranks reports the first of them.
        return SystemExit(ExitCode.FAILED)
    return error
