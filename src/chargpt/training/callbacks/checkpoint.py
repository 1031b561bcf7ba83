"""Saves checkpoints: the last and the previous one for resuming, the best one for inference."""

import shutil
import time
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.utilities import rank_zero_only

from chargpt.checkpoint import torch_file
from chargpt.checkpoint.torch_file import KEY
from chargpt.errors import DivergenceError, TrainingError, UserError
from chargpt.model.kernels.cpu_dtypes import get_cpu_dtypes
from chargpt.runs import retention
from chargpt.runs.directory import RunDirectory
from chargpt.training.callbacks.divergence import check_weights
from chargpt.training.callbacks.metrics import MetricsCallback
from chargpt.training.cpu_precision import as_plain
from chargpt.training.lightning_module import LanguageModeling
from chargpt.training.loggers import dispatch
from chargpt.version import __version__


class ChecksumCheckpointIO(TorchCheckpointIO):
    """Saves and loads Lightning's checkpoints in chargpt's file format."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        torch_file.save(checkpoint, Path(path))

    def load_checkpoint(self, path: str | Path, *args: Any, **kwargs: Any) -> dict[str, Any]:
        return torch_file.read(Path(path))


class CheckpointCallback(Checkpoint):
    """Saves after each validation and at intervals; keeps the last, the previous and the best checkpoint.

    Without validation (`trainer.limit_val_batches=0`) it saves at the same steps, and the last checkpoint is the best.

    Every checkpoint is saved between two steps. It is self-contained: it contains the weights, the tokenizer and the
    config as plain data. One that is saved before or during the validation of its step is marked as `validation_due`:
    a run that resumes from it starts with this validation.

    Args:
        run: the run directory.
        metrics_callback: provides the best step; its history is saved before each checkpoint.
        identity: plain data for each checkpoint: the config and the tokenizer.
        last_is_intact: whether the run resumes from `last.ckpt`; otherwise that file may be damaged.
        every_n_steps, every_minutes: intervals of further checkpoints, which `InterruptHandler` saves; None for none.
        keep: which checkpoints remain when the run has finished: one of `retention.KEEP`.

    Attributes:
        keep: the same, with `auto` resolved.
    """

    def __init__(
        self,
        run: RunDirectory,
        metrics_callback: MetricsCallback,
        identity: dict[str, Any],
        last_is_intact: bool = False,
        every_n_steps: int | None = None,
        every_minutes: float | None = None,
        keep: str = retention.ALL,
    ):
        self.keep = retention.resolve(keep)
        for name, value in {"every_n_steps": every_n_steps, "every_minutes": every_minutes}.items():
            if value is not None and not value > 0:
                raise UserError(f"checkpoint.{name}={value}: it must be more than 0, or null")
        self._run, self._metrics_callback = run, metrics_callback
        self._identity = identity
        self._last_is_intact = last_is_intact
        self._every_n_steps, self._every_minutes = every_n_steps, every_minutes
        self._saved_step, self._saved_at = 0, 0.0
        self._validation_due = False

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._saved_step, self._saved_at = trainer.global_step, time.monotonic()

    def steps_are_due(self, step: int) -> bool:
        """Whether a checkpoint is due by the number of steps; the same on all ranks."""
        return bool(self._every_n_steps) and step % self._every_n_steps == 0 and step != self._saved_step

    def time_is_due(self) -> bool:
        """Whether a checkpoint is due by this rank's clock; then False until the next one is due."""
        if not self._every_minutes or time.monotonic() - self._saved_at < 60 * self._every_minutes:
            return False
        self._saved_at = time.monotonic()  # with several ranks it is saved one step later
        return True

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, LanguageModeling)  # Lightning declares its base class
        step, interval = trainer.global_step, int(trainer.val_check_interval) // trainer.accumulate_grad_batches
        if (
            not trainer.enable_validation
            and not pl_module.in_step
            and step != self._saved_step
            and step % interval == 0
        ):
            self.save_between_validations(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.enable_validation:
            self.save(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.sanity_checking:
            return
        self.save(trainer)
        if self._metrics_callback.best_step == trainer.global_step:
            self.copy(self._run.last, self._run.best)
        self._write_status(trainer)

    def seconds_since_save(self) -> float:
        """The time since this rank's last checkpoint, or since the start."""
        return time.monotonic() - self._saved_at

    def save_between_validations(self, trainer: L.Trainer) -> None:
        """Saves a checkpoint that is due. Called on all ranks."""
        self.save(trainer)
        self._write_status(trainer)

    def save(self, trainer: L.Trainer, validation_due: bool = False) -> None:
        """Writes `last.ckpt`; an intact `last.ckpt` first becomes `previous.ckpt`. Called on all ranks.

        Args:
            validation_due: whether the validation of this step is not complete.
        """
        check_weights(trainer, trainer.lightning_module)
        self._validation_due = validation_due  # only now, because `on_exception` discards a checkpoint that is due
        if trainer.is_global_zero:
            self._metrics_callback.history.save(before=trainer.global_step if validation_due else None)
        dispatch.save(trainer.loggers)
        if self._last_is_intact:
            self.copy(self._run.last, self._run.previous)
        trainer.save_checkpoint(self._run.last)
        self._last_is_intact = True
        self._saved_step, self._saved_at = trainer.global_step, time.monotonic()

    def _write_status(self, trainer: L.Trainer) -> None:
        if trainer.is_global_zero:
            self._run.write_status("running", trainer.global_step)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        for name, state in checkpoint["callbacks"].items():
            if problem := torch_file.find_unloadable(state, "state_dict()"):
                raise TrainingError(
                    f"callback {name}: {problem}, which no checkpoint can contain: use plain data and tensors"
                )
        machine: dict[str, Any] = {"devices": trainer.world_size, "threads": torch.get_num_threads()}
        if dtypes := as_plain(get_cpu_dtypes()):
            machine["cpu_dtypes"] = dtypes
        checkpoint[KEY] = {"version": __version__, **machine, **self._identity}
        if self._validation_due:
            checkpoint[KEY]["validation_due"] = True
        _set_loop_progress(checkpoint["loops"]["fit_loop"], checkpoint["global_step"], trainer.accumulate_grad_batches)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        # The validation loss is not finite: a rollback must not start from a checkpoint before this validation.
        if isinstance(exception, DivergenceError) and self._validation_due and trainer.is_global_zero:
            if self._run.previous.exists():
                self._run.previous.replace(self._run.last)
            else:
                self._run.last.unlink()

    @staticmethod
    def is_validation_due(checkpoint: dict[str, Any]) -> bool:
        """Whether a run that resumes from a checkpoint must start with the validation of its step."""
        return checkpoint[KEY].get("validation_due") is True

    @staticmethod
    @rank_zero_only
    def copy(source: Path, target: Path) -> None:
        """Makes `target` a hard link to the checkpoint `source`, or a copy if that is not supported."""
        # A hard link is free, and safe because a checkpoint is never modified in place.
        partial = target.with_name(f".{target.name}-link")
        partial.unlink(missing_ok=True)
        try:
            partial.hardlink_to(source)
        except OSError:  # a file system without hard links
            shutil.copyfile(source, partial)
        partial.replace(target)


def _set_loop_progress(fit_loop: dict[str, Any], steps: int, batches_per_step: int) -> None:
    """Sets Lightning's progress counters to the completed batches, with none in progress.

    When a hook runs, the counters contain a batch or validation in progress, which a resumed run would count or run
    again.
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
