"""Shows training progress: a progress bar in a terminal or notebook, and one log line per validation."""

import logging
import time
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ProgressBar
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from chargpt.training.callbacks.metrics import MetricsCallback
from chargpt.training.callbacks.timer import TrainingTimer

log = logging.getLogger(__name__)


class TrainingProgressBar(ProgressBar):
    """A progress bar with loss, tokens/s and remaining time; log lines only if stderr is neither a terminal nor a
    notebook.

    Args:
        metrics_callback, timer: provide the values to show.
        refresh_seconds: time between two redraws. The bar shows the loss of the last logged step, so that it never
            synchronizes with the device.
    """

    def __init__(self, metrics_callback: MetricsCallback, timer: TrainingTimer, refresh_seconds: float = 0.2):
        super().__init__()
        self._metrics_callback, self._timer = metrics_callback, timer
        self._refresh_seconds = refresh_seconds
        self._bar: Bar | None = None
        self._display: Any = None  # of the notebook
        self._drawn = 0.0

    def disable(self) -> None:
        """Called by Lightning on ranks other than 0."""
        self._quiet = True

    def enable(self) -> None:
        self._quiet = False

    _quiet = False

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        console = Console(stderr=True)
        if self._quiet or not (console.is_terminal or console.is_jupyter):
            return
        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[speed]}"),
            TimeRemainingColumn(),
            console=console,
            auto_refresh=False,
            transient=True,
            expand=True,
        )
        total = trainer.max_steps if trainer.max_steps > 0 else None
        self._task = self._bar.add_task("", total=total, completed=trainer.global_step, speed="")
        if console.is_jupyter:  # rich itself requires ipywidgets
            from IPython.display import display  # noqa: PLC0415 - installed where a notebook runs

            self._display = display(self._bar, display_id=True)
        else:
            self._bar.start()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        now = time.monotonic()
        if self._bar is None or now - self._drawn < self._refresh_seconds:
            return
        self._drawn = now
        self._redraw(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._quiet or trainer.sanity_checking:
            return
        metrics_callback = self._metrics_callback
        best = "  best" if metrics_callback.best_step == trainer.global_step else ""
        log.info(
            "step %5d   train %.4f   val %.4f   %s tokens/s   %.0f s%s",
            trainer.global_step,
            metrics_callback.recent_train_loss if metrics_callback.recent_train_loss is not None else float("nan"),
            metrics_callback.val_loss,
            f"{metrics_callback.tokens_per_second:,.0f}",
            self._timer.train_seconds,
            best,
        )

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._close(trainer)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._close(trainer)

    def _redraw(self, trainer: L.Trainer) -> None:
        if self._bar is None:
            return
        loss = self._metrics_callback.train_loss
        self._bar.update(
            self._task,
            completed=trainer.global_step,
            description=f"loss {loss:.3f}" if loss is not None else "",
            speed=f"{self._metrics_callback.tokens_per_second:,.0f} tokens/s",
            refresh=True,
        )
        if self._display is not None:
            self._display.update(self._bar)

    def _close(self, trainer: L.Trainer) -> None:
        if self._bar is not None:
            self._redraw(trainer)
            self._bar.stop()
            self._bar = self._display = None
