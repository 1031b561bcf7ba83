"""Ctrl-C, SIGTERM, Slurm's SIGUSR1, and the end of who started this process: finish the step, save, leave."""

import shlex
import signal
import sys
from types import FrameType
from typing import Any

import lightning as L
import torch

from chargpt.errors import Interrupted
from chargpt.rank import ASKED, starter_is_gone
from chargpt.training.checkpoint import Checkpoints
from chargpt.training.curves import Curves
from chargpt.training.divergence import is_lost
from chargpt.training.requeue import WARNING, requeue
from chargpt.training.run_directory import RunDirectory


class Interruption(L.Callback):
    """Stops the run between two steps after the first signal, with everything saved; a second one kills it.

    The handler only sets a flag: a signal that lands in the middle of a step must not touch the model. All
    ranks agree on the step before which they stop; also where a rank has lost its loss.
    """

    def __init__(self, run: RunDirectory, checkpoints: Checkpoints):
        self._run, self._checkpoints = run, checkpoints
        self._signal = 0
        self._group: torch.distributed.ProcessGroup | None = None  # the default one
        self._handlers: dict[int, Any] = {}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.world_size > 1:
            if pl_module.device.type != "cpu":  # the flag goes by the CPUs: no step waits for the GPU
                self._group = torch.distributed.new_group(backend="gloo")
            # Lightning's own flag, sent round at each step, for a handler that is not there (hardware.py).
            trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None
        self._signal = next(iter(ASKED), 0)
        for number in (signal.SIGINT, signal.SIGTERM, WARNING):
            self._handlers[number] = signal.signal(number, self._remember)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx % trainer.accumulate_grad_batches:
            return
        stop = self._signal or (signal.SIGTERM if starter_is_gone() else 0)
        lost = is_lost(trainer, pl_module)
        if trainer.world_size > 1:
            anyone = torch.tensor([stop, lost])
            torch.distributed.all_reduce(anyone, torch.distributed.ReduceOp.MAX, group=self._group)
            stop, lost = anyone.tolist()
        if lost:
            next(c for c in trainer.callbacks if isinstance(c, Curves)).log_point(trainer, pl_module)
        if stop:
            self._checkpoints.save(trainer)
            step = trainer.global_step
            if trainer.is_global_zero:
                self._run.write_status("interrupted", step, signal.Signals(stop).name)
                if stop == WARNING:
                    requeue()
            words = shlex.quote(f"resume={self._run.path}")
            raise Interrupted(f"interrupted after step {step}, and saved. Go on with: python train.py {words}")

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._restore()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._restore()

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if self._signal:
            self._restore()
            signal.raise_signal(number)
        self._signal = number
        sys.stderr.write("\nfinishing this step and saving; once more to quit at once\n")

    def _restore(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}
