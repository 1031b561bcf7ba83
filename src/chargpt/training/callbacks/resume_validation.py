"""Runs the validation that was due when the run was interrupted."""

from collections.abc import Callable
from typing import Any

import lightning as L


class ResumeValidation(L.Callback):
    """Runs a validation before the first step, if the run resumes from a checkpoint whose validation is due.

    Lightning itself validates only after a training step. After the last step of a run, training ends at once, with the
    hooks `on_train_start` and `on_train_end`.

    Args:
        due: whether the validation is due.
        before: called before it, with the trainer and the module.
    """

    def __init__(self, due: bool, before: Callable[[L.Trainer, L.LightningModule], None]):
        self._due, self._before = due, before
        self._max_steps: int | None = None  # of a run that resumes after its last step

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        if checkpoint["global_step"] == trainer.max_steps:  # `fit` would return without calling any hook
            self._max_steps = trainer.max_steps
            trainer.fit_loop.epoch_loop.max_steps = -1

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._max_steps is not None:
            trainer.fit_loop.epoch_loop.max_steps = self._max_steps
            trainer.should_stop = True
        if self._due and trainer.enable_validation:
            self._before(trainer, pl_module)
            trainer.validating = True
            trainer.fit_loop.epoch_loop.val_loop.run()
            trainer.training = True
