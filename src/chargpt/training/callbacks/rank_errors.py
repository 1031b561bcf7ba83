"""What each of several ranks died of, written down where it dies: the first one is what ended the run."""

import contextlib
import traceback
from pathlib import Path

import lightning as L

from chargpt.errors import DivergenceError, Interrupted, TrialPruned
from chargpt.runs.directory import RunDirectory


class RankErrorFile(L.Callback):
    """Writes an error of this rank to `error_rank_N.txt` beside status.json, as soon as it is raised.

    The others then fail as well, in the middle of what they do together: the oldest file names the cause.

    Args:
        run: where to, as rank 0 knows it; the others are told.
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
            with contextlib.suppress(OSError):  # a node that does not share the disk: its terminal has the error
                file.write_text("".join(traceback.format_exception(exception)))
            # To move the model off its device could wait for a rank that is gone; this process ends anyway.
            trainer.strategy.teardown = lambda: None


def _is_reported_elsewhere(exception: Exception) -> bool:
    return isinstance(exception, Interrupted | DivergenceError | TrialPruned)
