"""A moving average of the weights: it is validated, saved and sampled from, and training goes on without it."""

from typing import Any

import lightning as L
import torch
from torch import Tensor

from chargpt.errors import UserError
from chargpt.optim import foreach

Weights = dict[torch.nn.Parameter, Tensor]


def make_ema(decay: float | None) -> list["EMA"]:
    """For `trainer.ema_decay`: none, or one."""
    return [] if decay is None else [EMA(decay)]


class EMA(L.Callback):
    """After each step average <- d * average + (1 - d) * weights, d = min(decay, (1 + step) / (10 + step)).

    The smaller d of the first steps lets go of the first weights (TensorFlow's `ExponentialMovingAverage`). It is
    kept in float32: in bfloat16 a hundredth of a step is lost. A checkpoint holds the average where weights are
    looked for, and the model's own beside it.

    Args:
        decay: above 0 and below 1; the average is over some 1 / (1 - decay) steps.

    Raises:
        UserError: a decay that is none.
    """

    def __init__(self, decay: float):
        if not 0 < decay < 1:
            raise UserError(f"trainer.ema_decay={decay}: it lies between 0 and 1, as 0.99; null is no average")
        self.decay = decay
        self._average: Weights = {}
        self._own: Weights = {}  # the model's, while the average stands in for them
        self._steps = 0  # that the average has seen

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not self._average:
            self._begin(pl_module)
        # A checkpoint is loaded before the model is on its device.
        self._average = {p: average.to(p.device) for p, average in self._average.items()}

    def _begin(self, pl_module: L.LightningModule) -> None:
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
        # Values, and not tensors: DDP, compiled code and the optimizer hold on to the model's.
        self._own = {p: p.detach().clone() for p in self._average}
        for p, average in self._average.items():
            p.copy_(average)

    @torch.no_grad()
    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        for p, own in self._own.items():
            p.copy_(own)
        self._own = {}

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self.on_validation_end(trainer, pl_module)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        def named(weights: Weights) -> dict[str, Tensor]:
            names = pl_module.named_parameters(remove_duplicate=False)  # tied weights have two
            return {name: weights[p] for name, p in names if p in weights}

        state = checkpoint["state_dict"]
        checkpoint["trained_state_dict"] = state | named(self._own)
        checkpoint["state_dict"] = state | named(self._average)

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        self._begin(pl_module)  # Lightning has loaded the average into the model already
        self._steps = checkpoint["global_step"]
        pl_module.load_state_dict(checkpoint["trained_state_dict"])
