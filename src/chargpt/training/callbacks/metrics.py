"""Logs training and validation metrics to history.csv and the loggers, and selects the best checkpoint."""

import contextlib
import math
from typing import Any

import lightning as L
import torch

from chargpt.data.datamodule import TextDataModule
from chargpt.errors import DivergenceError, TrainingError
from chargpt.model.loss import bits_per_character, perplexity
from chargpt.runs.score import Monitor
from chargpt.training.callbacks.divergence import ADVICE, first_non_finite_step, mean_losses
from chargpt.training.callbacks.timer import TrainingTimer
from chargpt.training.lightning_module import LanguageModeling
from chargpt.training.loggers import dispatch
from chargpt.training.loggers.csv_history import CSVHistory
from chargpt.training.trainer import peak_flops

VALIDATION_METRICS = ("val_loss", "val_bpc", "val_perplexity")  # computed by each validation
LOGGED_METRICS = ("val/loss", "val/bpc", "val/perplexity")  # their names for callbacks such as `EarlyStopping`
STATE_KEY = "Curves"  # the name of the callback's state in a checkpoint
SCORE = "score"  # the name of the monitored metric in `trainer.callback_metrics`


class MetricsCallback(L.Callback):
    """Logs training metrics at the first step and every `trainer.log_every_n_steps` steps, and each validation.

    `train_loss` is the mean over the steps since the last point and over all ranks; `grad_norm` (before clipping)
    and `lr` are those of the step itself; `tokens_per_second` counts training time only. history.csv has a column
    for each; in the loggers, they are `train/loss`, `train/grad_norm` and so on.

    Args:
        timer: measures the duration of steps.
        history: receives each point, independently of the loggers.
        monitor: the validation metric that selects the best checkpoint.

    Attributes:
        val_metrics: metrics of the last validation, by their names in metrics.json: `val_loss` in nats per token,
            `val_bpc` in bits per character, and others that were logged.
        score: the monitored metric in `val_metrics`.
        recent_train_loss: at a validation, the mean training loss since the last logged point, or that of the point.
        initial_loss, val_loss, best_val_loss, best_step, best_score, validation_tokens: for metrics.json.
        partial_validation: whether a validation of the run has read only a part of the validation split.
        best_from: if a run resumes without an intact best checkpoint, the step of the checkpoint from which it resumes,
            which then counts as the best so far.
        mfu: model FLOPs utilization of the last steps, as a fraction of the device's peak; None if the peak is
            unknown, as for a CPU.
    """

    def __init__(self, timer: TrainingTimer, history: CSVHistory, monitor: Monitor) -> None:
        self._timer, self.history, self.monitor = timer, history, monitor
        self.val_metrics: dict[str, float] = {}
        self.initial_loss: float | None = None
        self.train_loss: float | None = None
        self.recent_train_loss: float | None = None
        self.val_loss: float | None = None
        self.score: float | None = None
        self.best_val_loss = math.inf
        self.best_score: float = monitor.worst
        self.best_step = 0
        self.validation_tokens: int | None = None
        self.partial_validation = False
        self.best_from: int | None = None
        self.tokens_per_second = 0.0
        self.mfu: float | None = None
        self._lr = 0.0
        self._step = 0  # the last completed step
        self._last_step, self._last_seconds = 0, 0.0  # of the last logged point
        self._last_point: dict[str, float] = {}
        self._pending_losses: list[list[float]] = []  # by rank

    @property
    def state_key(self) -> str:
        return STATE_KEY

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        assert isinstance(pl_module, LanguageModeling)  # Lightning declares its base class
        self._module, self._trainer = pl_module, trainer
        pl_module.logs_metrics = False
        self._data: TextDataModule = trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue] - not declared
        self._peak_flops = peak_flops(trainer)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._step = trainer.global_step
        if pending := self._pending_losses:  # losses between the last logged point and the checkpoint
            losses = pending[trainer.global_rank % len(pending)]
            if len(pending) != trainer.world_size:  # resumed with another world size: each rank uses the mean
                losses = [sum(of_ranks) / len(of_ranks) for of_ranks in zip(*pending, strict=True)]
            self._module.train_losses = [torch.tensor(loss) for loss in losses]

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Any) -> None:
        self._lr = optimizer.param_groups[0]["lr"]

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        if step == self._step:  # gradients are being accumulated
            return
        self._step = step
        interval: int = trainer.log_every_n_steps  # pyright: ignore[reportAttributeAccessIssue] - not declared
        if step % interval and step != 1 and not trainer.should_stop:
            return
        self.log_point(trainer, self._module)

    def log_point(self, trainer: L.Trainer, pl_module: LanguageModeling) -> None:
        """Logs a point of the training curves. Called on all ranks.

        Raises:
            DivergenceError: the loss of a step since the last point is not finite.
        """
        step, passes = trainer.global_step, trainer.accumulate_grad_batches
        losses_N = mean_losses(trainer, pl_module)
        loss = losses_N.mean().item()
        pl_module.train_losses.clear()
        seconds = self._timer.train_seconds
        data = self._data
        tokens = data.batch_size * data.block_size * passes * (step - self._last_step)
        self.tokens_per_second = tokens / max(1e-9, seconds - self._last_seconds)
        self._last_step, self._last_seconds = step, seconds
        self.train_loss = loss
        if step == 1:
            self.initial_loss = loss
        norm = pl_module.measure_grad_norm().item()
        point = {"train_loss": loss, "lr": self._lr, "grad_norm": norm}
        point["tokens_per_second"] = self.tokens_per_second
        if self._peak_flops and pl_module.flops_per_token is not None:  # Chowdhery et al. 2022, PaLM, appendix B
            self.mfu = self.tokens_per_second * pl_module.flops_per_token / self._peak_flops
            point["mfu"] = self.mfu
        self._last_point = point
        self._log_train(trainer, point, step)
        if not math.isfinite(loss):
            raise DivergenceError(
                f"the training loss is {loss} at step {first_non_finite_step(losses_N, step, passes)} (learning rate "
                f"{self._lr:.3g}, gradient norm {norm:.3g}): {ADVICE}"
            )

    def log_again(self, trainer: L.Trainer) -> None:
        """Logs the point of the current step, if there is one, after the points of this step have been dropped."""
        if self._last_point and self._last_step == trainer.global_step:
            self._log_train(trainer, self._last_point, self._last_step)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.sanity_checking:
            return
        step, batches = trainer.global_step, self._data.validation_batches(trainer.world_size)
        self.recent_train_loss = self.train_loss
        if self._module.train_losses:
            self.recent_train_loss = mean_losses(trainer, self._module).mean().item()
        self.partial_validation = self.partial_validation or trainer.num_val_batches[0] != batches
        logged = {name: float(value) for name, value in trainer.callback_metrics.items() if name != SCORE}
        metrics = {name.replace("/", "_"): value for name, value in logged.items()}
        self.val_loss = metrics["val_loss"]
        metrics["val_bpc"] = bits_per_character(self.val_loss, self._data.characters_per_token)
        metrics["val_perplexity"] = perplexity(self.val_loss)
        self.val_metrics, self.score = metrics, metrics.get(self.monitor.name)
        if self.score is None:
            raise TrainingError(f"monitor={self.monitor.name}: not among the metrics {', '.join(sorted(metrics))}")
        trainer.callback_metrics[SCORE] = torch.tensor(self.score)
        if self.monitor.is_better(self.score, self.best_score):
            self.best_score, self.best_val_loss, self.best_step = self.score, self.val_loss, step
            self.validation_tokens = self._module.validation_tokens
        if trainer.is_global_zero:
            self.history.append(step, metrics)
        point = {"val/loss": self.val_loss, "val/perplexity": metrics["val_perplexity"]}
        self._log(trainer, point | {"val/bits_per_character": metrics["val_bpc"]}, step)
        if not math.isfinite(self.val_loss):  # before a checkpoint replaces the last good one
            raise DivergenceError(
                f"the validation loss is {self.val_loss} at step {step} (learning rate {self._lr:.3g}): {ADVICE}"
            )
        if not math.isfinite(self.score):
            raise TrainingError(
                f"monitor={self.monitor.name} is {self.score} at step {step}: checkpoints cannot be compared"
            )

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.is_global_zero:
            self.history.save()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        if trainer.is_global_zero:
            with contextlib.suppress(OSError):  # a full disk must not hide the exception
                self.history.save()

    def state_dict(self) -> dict[str, Any]:
        pending = torch.tensor([loss.item() for loss in self._module.train_losses], device=self._module.device)
        if self._trainer.world_size > 1:
            of_ranks = [torch.empty_like(pending) for _ in range(self._trainer.world_size)]
            torch.distributed.all_gather(of_ranks, pending)  # each rank resumes with its own losses
            pending = torch.cat(of_ranks)
        return {
            "initial_loss": self.initial_loss,
            "train_loss": self.train_loss,
            "val_loss": self.val_loss,
            "score": self.score,
            "best_val_loss": self.best_val_loss,
            "best_score": self.best_score,
            "best_step": self.best_step,
            "validation_tokens": self.validation_tokens,
            "partial_validation": self.partial_validation,
            "last_step": self._last_step,
            "last_seconds": self._last_seconds,
            "last_point": self._last_point,
            "waiting": pending.reshape(self._trainer.world_size, -1).tolist(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        # Before 0.3 the score was the validation loss.
        state_dict = {"score": state_dict["val_loss"], "best_score": state_dict["best_val_loss"]} | state_dict
        names = ("initial_loss", "train_loss", "val_loss", "score", "best_val_loss", "best_score", "best_step")
        for name in names:
            setattr(self, name, state_dict[name])
        self.partial_validation = state_dict.get("partial_validation", False)  # since 0.3
        self._last_step, self._last_seconds = state_dict["last_step"], state_dict["last_seconds"]
        self.validation_tokens = state_dict.get("validation_tokens")  # since 0.3
        point = state_dict.get("last_point", {})  # since 0.3
        self._last_point = {name.replace("/", "_"): value for name, value in point.items()}
        self._pending_losses = state_dict["waiting"]
        if self.best_from is not None and self.val_loss is not None and self.score is not None:
            self.best_val_loss, self.best_score, self.best_step = self.val_loss, self.score, self.best_from

    @classmethod
    def best_step_in(cls, checkpoint: dict[str, Any]) -> int:
        """The best step so far that a checkpoint records."""
        return checkpoint["callbacks"][STATE_KEY]["best_step"]

    def _log_train(self, trainer: L.Trainer, point: dict[str, float], step: int) -> None:
        if trainer.is_global_zero:
            self.history.append(step, point)
        self._log(trainer, {_train_tag(name): value for name, value in point.items()}, step)

    @staticmethod
    def _log(trainer: L.Trainer, point: dict[str, float], step: int) -> None:
        dispatch.log_metrics(trainer.loggers, point, step)


def _train_tag(name: str) -> str:
    """The name of a training metric in the loggers: `train/loss` for `train_loss`, `train/lr` for `lr`."""
    return f"train/{name.removeprefix('train_')}"
