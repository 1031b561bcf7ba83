"""Time spent training, and the end of the run: by steps or by time, whichever comes first."""

import time
from typing import Any

import lightning as L
import torch

ACTIVITIES = ("train", "validation", "checkpoint", "compilation", "setup")


class TrainingTimer(L.Callback):
    """Measures what a run spends its time on, and stops it at its last step, with a last validation.

    At each moment one of `ACTIVITIES` counts: steps; validation; checkpoints, with the samples beside them;
    compilation; and set-up, from the making of this clock to the first step. The device is synchronised where
    steps begin and end. Time is summed over resumed parts.

    Args:
        max_time: training time of the whole run, in seconds; None for no limit.
    """

    state_key = "TrainingClock"

    def __init__(self, max_time: float | None):
        self._max_time = max_time
        self._spent = dict.fromkeys(ACTIVITIES, 0.0)
        self._activity, self._since = "setup", time.perf_counter()
        self._used = 0.0
        self._step = 0  # the last that has ended

    def seconds(self) -> dict[str, float]:
        """Seconds spent on each activity so far."""
        return self._spent | {self._activity: self._spent[self._activity] + time.perf_counter() - self._since}

    @property
    def train_seconds(self) -> float:
        return self.seconds()["train"]

    def time_used(self) -> float:
        """Share of the time budget that is used, the same on all ranks; 0 without one."""
        return self._used

    def fraction_of_time(self) -> float:
        """Share of the time budget that this rank has used by now, from 0 to 1; 0 without a budget."""
        return 0.0 if self._max_time is None else min(1.0, self.train_seconds / self._max_time)

    def agree(self, used: float) -> None:
        """Sets what `time_used` gives to rank 0's share, a step old.

        Ranks with clocks of their own would differ in the learning rate or in the last step.
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
        if self._used >= 1.0:  # resumed after its last step: only the end is to be written
            trainer.should_stop = True

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        self.start_activity("train", pl_module.device)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        if trainer.world_size == 1:
            self._used = self.fraction_of_time()
        step = trainer.global_step
        if step == self._step:  # gradients are being accumulated
            return
        self._step = step
        if step == trainer.max_steps or self._used >= 1.0:
            trainer.should_stop = True  # Lightning then validates once more and leaves

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.start_activity("validation", pl_module.device)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.start_activity("checkpoint", pl_module.device)

    def state_dict(self) -> dict[str, float]:
        return self.seconds()

    def load_state_dict(self, state_dict: dict[str, float]) -> None:
        for activity, seconds in state_dict.items():
            self._spent[activity] += seconds
        self._used = 0.0 if self._max_time is None else min(1.0, self._spent["train"] / self._max_time)

    @classmethod
    def train_seconds_in(cls, checkpoint: dict[str, Any]) -> float:
        """The training time by the time of a checkpoint."""
        return checkpoint["callbacks"][cls.state_key]["train"]


def synchronize(device: torch.device) -> None:
    """Waits until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
