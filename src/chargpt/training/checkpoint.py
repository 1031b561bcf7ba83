"""Checkpoints: the last state and the one before it to go on from, the best one to use."""

import shutil
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.utilities import rank_zero_only

import chargpt
from chargpt.errors import Failed
from chargpt.training.curves import Curves
from chargpt.training.run_directory import RunDirectory
from chargpt.whole import whole

KEY = "chargpt"  # our part of Lightning's checkpoint


class WholeCheckpointIO(TorchCheckpointIO):
    """A checkpoint is whole or absent."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        path = Path(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with whole(path) as file:
                torch.save(checkpoint, file)
        except (OSError, RuntimeError) as error:  # torch's writer hides the disk's own words
            cause = error if isinstance(error, OSError) else error.__context__
            reason = cause.strerror if isinstance(cause, OSError) else str(error).splitlines()[0]
            free = shutil.disk_usage(path.parent).free / 2**20 if path.parent.exists() else 0
            raise Failed(
                f"{path} cannot be saved: {reason} ({free:,.0f} MiB are free there). The checkpoint before it is "
                f"whole; make room, and go on from it with resume="
            ) from error


class Checkpoints(Checkpoint):
    """Saves after each validation; keeps the last state, the one before it, and the best.

    Every checkpoint is made between two steps, with the validation of the last one done, and is
    self-contained: weights, tokenizer and config are in it as plain data.

    Args:
        run: where to.
        identity: plain data that goes into each checkpoint: the config and the tokenizer.
    """

    def __init__(self, run: RunDirectory, identity: dict[str, Any]):
        self._run = run
        self._identity = identity

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        curves = next(c for c in trainer.callbacks if isinstance(c, Curves))
        self.save(trainer)
        if curves.best_step == trainer.global_step:
            self.copy(self._run.last, self._run.best)
        if trainer.is_global_zero:
            self._run.write_status("running", trainer.global_step)

    def save(self, trainer: L.Trainer) -> None:
        """Writes `last.ckpt`; what stood there becomes `previous.ckpt`. Called on all ranks."""
        for logger in trainer.loggers:
            logger.save()
        if self._run.last.exists():
            self.copy(self._run.last, self._run.previous)
        trainer.save_checkpoint(self._run.last)

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        checkpoint[KEY] = {"version": chargpt.__version__, "devices": trainer.world_size, **self._identity}
        _settle(checkpoint["loops"]["fit_loop"], checkpoint["global_step"], trainer.accumulate_grad_batches)

    @staticmethod
    @rank_zero_only
    def copy(source: Path, target: Path) -> None:
        """Makes `target` another name of the checkpoint `source`."""
        # A hard link costs nothing, and a checkpoint is never written in place.
        partial = target.with_name(f".{target.name}-link")
        partial.unlink(missing_ok=True)
        try:
            partial.hardlink_to(source)
        except OSError:  # a file system without hard links
            shutil.copyfile(source, partial)
        partial.replace(target)


def _settle(fit_loop: dict[str, Any], steps: int, batches_per_step: int) -> None:
    """Sets Lightning's progress counters to "just so many batches done, none begun".

    Taken inside a hook they say that a batch or a validation is under way, and a resumed run would count it
    again or run it again.
    """
    batches = steps * batches_per_step
    done = dict.fromkeys(("ready", "started", "processed", "completed"), batches)
    none = dict.fromkeys(done, 0)
    loop = "epoch_loop.batch_progress"
    fit_loop[loop] = {"total": dict(done), "current": dict(done), "is_last_batch": False}
    fit_loop["epoch_loop.val_loop.batch_progress"] = {
        "total": dict(none),
        "current": dict(none),
        "is_last_batch": False,
    }
    fit_loop["epoch_loop.state_dict"] = {"_batches_that_stepped": steps}
