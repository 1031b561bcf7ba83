"""Early stopping that a resumed run continues exactly."""

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason


class ResumableEarlyStopping(EarlyStopping):
    """Lightning's `EarlyStopping`; a run that has stopped early does not train on when it is resumed.

    With other settings it does. Lightning would replace a new `patience` by that of the checkpoint.
    """

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"settings": self._settings()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict | {"patience": self.patience})
        if state_dict["settings"] != self._settings():
            self.stopping_reason, self.stopping_reason_message = EarlyStoppingReason.NOT_STOPPED, None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.stopping_reason != EarlyStoppingReason.NOT_STOPPED:
            trainer.should_stop = True

    def _settings(self) -> list[float | None]:
        return [self.patience, self.min_delta, self.stopping_threshold, self.divergence_threshold]
