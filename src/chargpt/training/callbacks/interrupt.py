"""Acts between two batches: stops after a signal or a loss that is not finite, and saves checkpoints that are due."""

import contextlib
import signal
import sys
from types import FrameType
from typing import Any, NoReturn

import lightning as L
import torch

from chargpt.distributed.async_reduce import AsyncMaxReduce
from chargpt.distributed.env import STOP_SIGNALS, parent_exited, received_signals, set_handlers
from chargpt.distributed.slurm import PREEMPTION_SIGNAL, requeue
from chargpt.errors import Interrupted
from chargpt.invocation import command_line
from chargpt.runs.directory import RunDirectory
from chargpt.training.callbacks.checkpoint import CheckpointCallback
from chargpt.training.callbacks.divergence import NonFiniteLossDetector, mean_losses
from chargpt.training.callbacks.metrics import MetricsCallback
from chargpt.training.callbacks.timer import TrainingTimer
from chargpt.training.lightning_module import LanguageModeling

SAVE_BEFORE_VALIDATION_SECONDS = 30  # so that a kill during a validation loses little


class InterruptHandler(L.Callback):
    """Saves a checkpoint and stops the run after a signal; stops it without saving if a loss is NaN or infinite.

    It also saves the checkpoints that are due between validations, and before a validation if the last checkpoint is
    older than `SAVE_BEFORE_VALIDATION_SECONDS`.

    The signal handler only sets a flag, because a step must not be interrupted; a second signal kills the process. A
    validation is interrupted between two batches, and the resumed run starts with it.
    With several ranks, an asynchronous all-reduce during the previous step makes all ranks stop before the same step
    and agree on whether a loss is not finite, on the time used, and on whether a checkpoint is due.
    """

    def __init__(
        self,
        run: RunDirectory,
        checkpoints: CheckpointCallback,
        timer: TrainingTimer,
        metrics_callback: MetricsCallback,
    ):
        self._run, self._checkpoints, self._timer, self._metrics_callback = run, checkpoints, timer, metrics_callback
        self._signal = 0
        self._handlers: dict[int, Any] = {}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._reduce = AsyncMaxReduce(trainer.world_size, pl_module.device)
        self._validation_reduce = AsyncMaxReduce(trainer.world_size, pl_module.device)
        self._detector = NonFiniteLossDetector(pl_module.device, trainer.accumulate_grad_batches)
        self._signal = next(iter(received_signals), 0)
        self._handlers = set_handlers(dict.fromkeys(STOP_SIGNALS, self._on_signal))

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, LanguageModeling)  # Lightning declares its base class
        if pl_module.in_step:
            return
        number = self._received()
        newest = pl_module.train_losses[-trainer.accumulate_grad_batches :]
        used = self._timer.local_time_fraction() if trainer.is_global_zero else 0.0
        due = self._checkpoints.time_is_due() if trainer.is_global_zero else False
        reduced = self._reduce.exchange([number, self._detector.is_non_finite(newest), used, due])
        if reduced is None:
            return
        number, diverged, used = int(reduced[0]), bool(reduced[1]), reduced[2]
        if trainer.world_size > 1:
            self._timer.set_time_fraction(used)
        save = bool(reduced[3]) or self._checkpoints.steps_are_due(trainer.global_step)
        if (number or save) and pl_module.train_losses:  # the losses of the newest steps may not have been checked
            diverged = diverged or not torch.isfinite(mean_losses(trainer, pl_module)).all()
        if diverged:
            self._metrics_callback.log_point(trainer, pl_module)  # raises DivergenceError
        if number:
            self._stop(trainer, number)
        if save:
            self._timer.start_activity("checkpoint", pl_module.device)
            self._checkpoints.save_between_validations(trainer)
            self._timer.start_activity("train", pl_module.device)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.sanity_checking:
            return
        old = self._checkpoints.seconds_since_save() > SAVE_BEFORE_VALIDATION_SECONDS
        if trainer.strategy.broadcast(old):  # rank 0 decides
            self._timer.start_activity("checkpoint", pl_module.device)
            self._checkpoints.save(trainer, validation_due=True)
            self._timer.start_activity("validation", pl_module.device)

    def on_validation_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if trainer.sanity_checking:
            return
        reduced = self._validation_reduce.exchange([self._received()])
        if reduced is not None and reduced[0]:
            self._stop(trainer, int(reduced[0]), validation_due=True)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.sanity_checking:
            self._validation_reduce.finish()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._reduce.finish()
        self._restore()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._restore()

    def _received(self) -> int:
        """The signal to this rank; 0 for none."""
        return self._signal or (signal.SIGTERM if parent_exited() else 0)

    def _stop(self, trainer: L.Trainer, number: int, validation_due: bool = False) -> None:
        """Saves a checkpoint and ends the run. Called on all ranks."""
        self._checkpoints.save(trainer, validation_due)
        end_interrupted(trainer, self._run, number, "checkpoint saved")

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._signal and parent_exited():  # sent by the kernel because the parent exited, not by a user
            return
        if self._signal:
            self._restore()
            signal.raise_signal(number)
        self._signal = number
        with contextlib.suppress(OSError):  # the terminal may be gone
            sys.stderr.write("\nfinishing this batch and saving; a second signal quits immediately\n")

    def _restore(self) -> None:
        set_handlers(self._handlers)
        self._handlers = {}


def end_interrupted(trainer: L.Trainer, run: RunDirectory, number: int, state: str) -> NoReturn:
    """Records that a signal has interrupted the run, and raises `Interrupted`. Called on all ranks.

    Args:
        number: of the signal.
        state: for the message.
    """
    step = trainer.global_step
    if trainer.is_global_zero:
        run.write_status("interrupted", step, signal.Signals(number).name)
        if number == PREEMPTION_SIGNAL:
            requeue()
    command = command_line("train", f"resume={run.path}")
    raise Interrupted(f"interrupted after step {step}, {state}. Resume with: {command}")
