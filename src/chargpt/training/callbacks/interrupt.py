"""Ctrl-C, SIGTERM, Slurm's SIGUSR1, and the end of who started this process: finish the step, save, leave."""

import contextlib
import shlex
import signal
import sys
from types import FrameType
from typing import Any

import lightning as L
import torch

from chargpt.distributed.async_reduce import AsyncMaxReduce
from chargpt.distributed.env import parent_exited, received_signals
from chargpt.distributed.slurm import PREEMPTION_SIGNAL, requeue
from chargpt.errors import Interrupted
from chargpt.runs.directory import RunDirectory
from chargpt.training.callbacks.checkpoint import CheckpointCallback
from chargpt.training.callbacks.divergence import NonFiniteLossDetector, mean_losses
from chargpt.training.callbacks.metrics import MetricsCallback
from chargpt.training.callbacks.timer import TrainingTimer


class InterruptHandler(L.Callback):
    """Stops the run between two steps after the first signal, with everything saved; a second one kills it.

    The handler only sets a flag: a signal that lands in the middle of a step must not touch the model. Several
    ranks agree on the step before which they stop, on whether a loss is lost and on the time used, by numbers that
    are exchanged while the step before runs.
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
        self._agreement = AsyncMaxReduce(trainer.world_size, pl_module.device)
        self._losses = NonFiniteLossDetector(pl_module.device, trainer.accumulate_grad_batches)
        self._signal = next(iter(received_signals), 0)
        for number in (signal.SIGINT, signal.SIGTERM, PREEMPTION_SIGNAL):
            self._handlers[number] = signal.signal(number, self._on_signal)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if pl_module.in_step:
            return
        asked = self._signal or (signal.SIGTERM if parent_exited() else 0)
        newest = pl_module.train_losses[-trainer.accumulate_grad_batches :]
        used = self._timer.fraction_of_time() if trainer.is_global_zero else 0.0
        agreed = self._agreement.exchange([asked, self._losses.is_non_finite(newest), used])
        if agreed is None:
            return
        stop, lost, used = int(agreed[0]), bool(agreed[1]), agreed[2]
        if trainer.world_size > 1:
            self._timer.agree(used)
        if stop and pl_module.train_losses:  # the newest steps may not have been looked at
            lost = lost or not torch.isfinite(mean_losses(trainer, pl_module)).all()
        if lost:
            self._metrics_callback.log_point(trainer, pl_module)
        if stop:
            self._checkpoints.save(trainer)
            step = trainer.global_step
            if trainer.is_global_zero:
                self._run.write_status("interrupted", step, signal.Signals(stop).name)
                if stop == PREEMPTION_SIGNAL:
                    requeue()
            words = shlex.quote(f"resume={self._run.path}")
            raise Interrupted(f"interrupted after step {step}, and saved. Go on with: python train.py {words}")

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._agreement.finish()
        self._restore()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._restore()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._signal and parent_exited():  # the kernel's word that the parent has ended, not a user's
            return
        if self._signal:
            self._restore()
            signal.raise_signal(number)
        self._signal = number
        with contextlib.suppress(OSError):  # the terminal may be gone
            sys.stderr.write("\nfinishing this step and saving; once more to quit at once\n")

    def _restore(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}
