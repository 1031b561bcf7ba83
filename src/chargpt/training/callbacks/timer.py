"""Measures the time of each activity, and stops training at the maximum number of steps or time."""

import time
from typing import Any

import lightning as L
import torch

STATE_KEY = "TrainingClock"  # the name of the callback's state in a checkpoint
ACTIVITIES = ("train", "validation", "checkpoint", "compilation", "setup")


class TrainingTimer(L.Callback):
    """Measures the time of each activity, and stops the run after its last step and a final validation.

    At any time exactly one of `ACTIVITIES` is measured: training steps; validation; checkpoints, including samples;
    compilation; and setup, from the construction of this timer to the first step. The device is synchronized
    before and after training steps. A resumed run adds to the times of its checkpoint.

    Args:
        max_time: maximum training time of the run, in seconds, over all its processes; None for no limit.
    """

    def __init__(self, max_time: float | None):
        self._max_time = max_time
        self._spent: dict[str, float] = dict.fromkeys(ACTIVITIES, 0.0)
        self._activity, self._since = "setup", time.perf_counter()
        self._used = 0.0
        self._step = 0  # the last completed step

    @property
    def state_key(self) -> str:
        return STATE_KEY

    def seconds(self) -> dict[str, float]:
        """Seconds spent on each activity so far."""
        return self._spent | {self._activity: self._spent[self._activity] + time.perf_counter() - self._since}

    @property
    def train_seconds(self) -> float:
        return self.seconds()["train"]

    def time_fraction(self) -> float:
        """Fraction of the time budget that is used, the same on all ranks; 0 without a budget."""
        return self._used

    def local_time_fraction(self) -> float:
        """Fraction of the time budget that this rank has used, from 0 to 1; 0 without a budget."""
        return 0.0 if self._max_time is None else min(1.0, self.train_seconds / self._max_time)

    def set_time_fraction(self, used: float) -> None:
        """Sets the result of `time_fraction` to the fraction that rank 0 measured one step ago.

        If each rank used its own clock, the ranks could use different learning rates or stop at different steps.
        """
        self._used = used

    def start_activity(self, activity: str, device: torch.device) -> None:
        if activity != self._activity:
            if "train" in (activity, self._activity):
                synchronize(device)
            self._spent = self.seconds()
            self._activity, self._since = activity, time.perf_counter()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._step = trainer.global_step
        if self._used >= 1.0:  # resumed after its last step: only metrics.json is missing
            trainer.should_stop = True

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self.start_activity("train", pl_module.device)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.world_size == 1:
            self._used = self.local_time_fraction()
        step = trainer.global_step
        if step == self._step:  # gradients are being accumulated
            return
        self._step = step
        if step == trainer.max_steps or self._used >= 1.0:
            trainer.should_stop = True  # Lightning then runs a last validation and stops

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.start_activity("validation", pl_module.device)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.start_activity("checkpoint", pl_module.device)

    def on_sanity_check_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.start_activity("setup", pl_module.device)

    def state_dict(self) -> dict[str, float]:
        return self.seconds()

    def load_state_dict(self, state_dict: dict[str, float]) -> None:
        for activity, seconds in state_dict.items():
            self._spent[activity] += seconds
        self._used = 0.0 if self._max_time is None else min(1.0, self._spent["train"] / self._max_time)

    @classmethod
    def train_seconds_in(cls, checkpoint: dict[str, Any]) -> float:
        """The training time in seconds that a checkpoint records."""
        return checkpoint["callbacks"][STATE_KEY]["train"]


def synchronize(device: torch.device) -> None:
    """Waits until the device has finished all queued work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
