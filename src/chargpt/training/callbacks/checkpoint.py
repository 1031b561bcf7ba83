"""Checkpoints: the last state and the one before it to go on from, the best one to use."""

import shutil
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.utilities import rank_zero_only

from chargpt.checkpoint import torch_file
from chargpt.checkpoint.torch_file import KEY
from chargpt.runs.directory import RunDirectory
from chargpt.training.callbacks.divergence import check_weights
from chargpt.training.callbacks.metrics import MetricsCallback
from chargpt.version import __version__


class ChecksumCheckpointIO(TorchCheckpointIO):
    """Lightning's checkpoints in our file."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        torch_file.save(checkpoint, Path(path))

    def load_checkpoint(self, path: str | Path, *args: Any, **kwargs: Any) -> dict[str, Any]:
        return torch_file.read(Path(path))


class CheckpointCallback(Checkpoint):
    """Saves after each validation; keeps the last state, the one before it, and the best.

    Every checkpoint is made between two steps, with the validation of the last one done, and is
    self-contained: weights, tokenizer and config are in it as plain data.

    Args:
        run: where to.
        curves: say which step is the best, and are saved before each checkpoint.
        identity: plain data that goes into each checkpoint: the config and the tokenizer.
        last_is_whole: whether `last.ckpt` is what the run goes on from; otherwise it may be damaged.
    """

    def __init__(
        self,
        run: RunDirectory,
        metrics_callback: MetricsCallback,
        identity: dict[str, Any],
        last_is_whole: bool = False,
    ):
        self._run, self._metrics_callback = run, metrics_callback
        self._identity = identity
        self._last_is_whole = last_is_whole

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.save(trainer)
        if self._metrics_callback.best_step == trainer.global_step:
            self.copy(self._run.last, self._run.best)
        if trainer.is_global_zero:
            self._run.write_status("running", trainer.global_step)

    def save(self, trainer: L.Trainer) -> None:
        """Writes `last.ckpt`; what stood there becomes `previous.ckpt`, if it is whole. Called on all ranks."""
        check_weights(trainer, trainer.lightning_module)
        if trainer.is_global_zero:
            self._metrics_callback.save()
        for logger in trainer.loggers:
            logger.save()
        if self._last_is_whole:
            self.copy(self._run.last, self._run.previous)
        trainer.save_checkpoint(self._run.last)
        self._last_is_whole = True

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint[KEY] = {"version": __version__, "devices": trainer.world_size, **self._identity}
        _set_loop_progress(checkpoint["loops"]["fit_loop"], checkpoint["global_step"], trainer.accumulate_grad_batches)

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


def _set_loop_progress(fit_loop: dict[str, Any], steps: int, batches_per_step: int) -> None:
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
