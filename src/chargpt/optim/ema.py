"""An exponential moving average (EMA) of the weights, used for validation, checkpoints and sampling."""

from typing import Any

import lightning as L
import torch
from torch import Tensor

from chargpt.errors import UserError
from chargpt.optim import foreach

Weights = dict[torch.nn.Parameter, Tensor]


def make_ema(decay: float | None) -> list["EMA"]:
    """Returns the callbacks for `trainer.ema_decay`: an EMA, or none."""
    return [] if decay is None else [EMA(decay)]


class EMA(L.Callback):
    """After each step average <- d * average + (1 - d) * weights, d = min(decay, (1 + step) / (10 + step)).

    The smaller d of the first steps reduces the influence of the initial weights (as in TensorFlow's
    `ExponentialMovingAverage`). The average is in float32, because updates of this size would be lost in bfloat16. A
    checkpoint contains the average as `state_dict` and the trained weights as `trained_state_dict`.

    Args:
        decay: greater than 0 and less than 1; the average covers about 1 / (1 - decay) steps.

    Raises:
        UserError: `decay` is out of range.
    """

    def __init__(self, decay: float):
        if not 0 < decay < 1:
            raise UserError(
                f"trainer.ema_decay={decay}: it must be greater than 0 and less than 1, for example 0.99, or null for "
                f"no EMA"
            )
        self.decay = decay
        self._average: Weights = {}
        self._trained: Weights = {}  # a copy of the trained weights, while the model contains the average
        self._steps = 0  # the number of steps in the average

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not self._average:
            self._start(pl_module)
        # A checkpoint is loaded before the model is moved to its device.
        self._average = {p: average.to(p.device) for p, average in self._average.items()}

    def _start(self, pl_module: L.LightningModule) -> None:
        self._average = {p: p.detach().float().clone() for p in pl_module.parameters()}

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self._steps:  # gradients are being accumulated
            return
        self._steps = trainer.global_step
        decay = min(self.decay, (1 + self._steps) / (10 + self._steps))
        foreach.lerp_(list(self._average.values()), [p.float() for p in self._average], 1 - decay)

    @torch.no_grad()
    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # Swaps values instead of tensors: DDP, compiled code and the optimizer refer to the model's tensors.
        self._trained = {p: p.detach().clone() for p in self._average}
        for p, average in self._average.items():
            p.copy_(average)

    @torch.no_grad()
    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        for p, trained in self._trained.items():
            p.copy_(trained)
        self._trained = {}

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self.on_validation_end(trainer, pl_module)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        def named(weights: Weights) -> dict[str, Tensor]:
            names = pl_module.named_parameters(remove_duplicate=False)  # tied weights have two
            return {name: weights[p] for name, p in names if p in weights}

        state = checkpoint["state_dict"]
        checkpoint["trained_state_dict"] = state | named(self._trained)
        checkpoint["state_dict"] = state | named(self._average)

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        self._start(pl_module)  # Lightning has already loaded the average into the model
        self._steps = checkpoint["global_step"]
        pl_module.load_state_dict(checkpoint["trained_state_dict"])
