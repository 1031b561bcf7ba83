"""Time spent training, and the end of the run: by steps or by time, whichever comes first."""

import time
from datetime import timedelta
from typing import Any

import lightning as L
import torch

from chargpt.errors import Mistake


def seconds_of(max_time: str | int | float | dict[str, int | float] | None) -> float | None:
    """`trainer.max_time` in seconds: a number, `DD:HH:MM:SS`, or timedelta's keywords; None for no limit."""
    if max_time is None:
        return None
    try:
        if isinstance(max_time, str):
            fields = [float(field) for field in max_time.split(":")]
            if len(fields) > 4:
                raise ValueError
            seconds = sum(f * unit for f, unit in zip(reversed(fields), (1, 60, 3600, 86400), strict=False))
        elif isinstance(max_time, int | float):
            seconds = float(max_time)
        else:
            seconds = timedelta(**max_time).total_seconds()
    except (ValueError, TypeError) as error:
        raise Mistake(
            f"trainer.max_time={max_time!r} is not a time: give seconds, or DD:HH:MM:SS as in 00:00:05:00"
        ) from error
    if not 0 < seconds < float("inf"):
        raise Mistake(f"trainer.max_time={max_time!r}: it must be more than 0 seconds")
    return seconds


class TrainingClock(L.Callback):
    """Measures `train_seconds` and stops the run at its last step, with a last validation.

    The clock runs while steps are taken, and stands still in validation, checkpoints and set-up; the device is
    synchronised where it starts and stops. Time is summed over resumed parts.

    Args:
        max_time: training time of the whole run, in seconds; None for no limit.
    """

    def __init__(self, max_time: float | None):
        self._max_time = max_time
        self._before = 0.0
        self._since: float | None = None
        self._used = 0.0

    @property
    def train_seconds(self) -> float:
        return self._before + (time.perf_counter() - self._since if self._since is not None else 0.0)

    def time_used(self) -> float:
        """Share of the time budget that is used, the same on all ranks; 0 without one."""
        return self._used

    def start(self, device: torch.device) -> None:
        synchronize(device)
        self._since = time.perf_counter()

    def stop(self, device: torch.device) -> None:
        if self._since is not None:
            synchronize(device)
            self._before, self._since = self.train_seconds, None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._used >= 1.0:  # resumed after its last step: only the end is to be written
            trainer.should_stop = True

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        if self._since is None:  # the first step, and the first after a validation
            self.start(pl_module.device)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        if self._max_time is not None:
            self._used = min(1.0, self.train_seconds / self._max_time)
            if trainer.world_size > 1:  # ranks that differ in the learning rate or the end would fall apart
                used = torch.tensor(self._used, device=pl_module.device)
                torch.distributed.broadcast(used, src=0)
                self._used = used.item()
        within_step = trainer.fit_loop.epoch_loop._should_accumulate()
        if not within_step and (trainer.global_step == trainer.max_steps or self._used >= 1.0):
            trainer.should_stop = True  # Lightning then validates once more and leaves

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.stop(pl_module.device)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.stop(pl_module.device)

    def state_dict(self) -> dict[str, float]:
        return {"train_seconds": self.train_seconds}

    def load_state_dict(self, state_dict: dict[str, float]) -> None:
        self._before = state_dict["train_seconds"]
        self._used = 0.0 if self._max_time is None else min(1.0, self._before / self._max_time)


def synchronize(device: torch.device) -> None:
    """Waits until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
