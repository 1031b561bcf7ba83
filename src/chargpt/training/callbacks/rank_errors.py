"""Records the exception of each rank in a file, so that the first one, the cause of the failure, can be reported."""

import contextlib
import traceback
from pathlib import Path

import lightning as L

from chargpt.errors import DivergenceError, Interrupted, TrialPruned
from chargpt.runs.directory import RunDirectory
from chargpt.utils.atomic_write import atomic_write_text


class RankErrorFile(L.Callback):
    """Writes an exception of this rank to `error_rank_N.txt` in the run directory as soon as it is raised.

    The other ranks then fail in their collective operations, so the oldest file contains the cause.

    Args:
        run: the run directory; that of rank 0 is broadcast to the other ranks.
    """

    def __init__(self, run: RunDirectory):
        self._run = run
        self._directory = run.path

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if trainer.world_size > 1:
            self._directory = Path(trainer.strategy.broadcast(str(self._run.path.absolute())))

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        if trainer.world_size > 1 and isinstance(exception, Exception) and not _is_reported_elsewhere(exception):
            file = self._directory / f"error_rank_{trainer.global_rank}.txt"
            with contextlib.suppress(OSError):  # a node without the shared disk: the error is on its terminal
                atomic_write_text(file, "".join(traceback.format_exception(exception)))  # the launcher is reading
            # The teardown could wait for a rank that has exited, and is not needed: this process exits.
            trainer.strategy.teardown = lambda: None


def _is_reported_elsewhere(exception: Exception) -> bool:
    return isinstance(exception, Interrupted | DivergenceError | TrialPruned)
