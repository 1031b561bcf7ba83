"""A moving average of the weights: it is validated, saved and sampled from, and training goes on without it."""

from typing import Any

import lightning as L
import torch
from lightning.pytorch.strategies import FSDPStrategy
from torch import Tensor

from chargpt.errors import Mistake


def moving_average(decay: float | None) -> list["MovingAverage"]:
    """For `trainer.ema_decay`: none, or one."""
    return [] if decay is None else [MovingAverage(decay)]


class MovingAverage(L.Callback):
    """After each step average <- d * average + (1 - d) * weights, d = min(decay, (1 + step) / (10 + step)).

    The smaller d of the first steps lets go of the first weights (TensorFlow's `ExponentialMovingAverage`). A
    checkpoint holds the average where its weights are looked for, and the weights themselves beside it.

    Args:
        decay: above 0 and below 1; the average is over some 1 / (1 - decay) steps.

    Raises:
        Mistake: a decay that is none; FSDP, under which no process has whole weights.
    """

    def __init__(self, decay: float):
        if not 0 < decay < 1:
            raise Mistake(f"trainer.ema_decay={decay}: it lies between 0 and 1, as 0.99; null is no average")
        self.decay = decay
        self._average: dict[torch.nn.Parameter, Tensor] = {}
        self._steps = 0  # that the average has seen

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if isinstance(trainer.strategy, FSDPStrategy):
            raise Mistake("trainer.ema_decay wants whole weights, which FSDP splits: take trainer=ddp")

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not self._average:
            self._begin(pl_module)
        # A checkpoint is loaded before the model is on its device.
        self._average = {p: average.to(p.device) for p, average in self._average.items()}

    def _begin(self, pl_module: L.LightningModule) -> None:
        self._average = {p: p.detach().clone() for p in pl_module.parameters()}

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self._steps:  # gradients are being accumulated
            return
        self._steps = trainer.global_step
        decay = min(self.decay, (1 + self._steps) / (10 + self._steps))
        torch._foreach_lerp_(list(self._average.values()), list(self._average), 1 - decay)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._swap()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._swap()

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        # Tied weights have two names there.
        named = pl_module.named_parameters(remove_duplicate=False)
        average = {name: self._average[p] for name, p in named} if self._average else {}
        checkpoint["trained_state_dict"] = checkpoint["state_dict"]
        checkpoint["state_dict"] = checkpoint["state_dict"] | average

    def on_load_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        # Lightning has loaded the average into the model already.
        self._begin(pl_module)
        self._steps = checkpoint["global_step"]
        pl_module.load_state_dict(checkpoint["trained_state_dict"])

    @torch.no_grad()
    def _swap(self) -> None:
        """Values, and not tensors: DDP, compiled code and the optimizer hold on to the model's."""
        for weight, average in self._average.items():
            kept = weight.clone()
            weight.copy_(average)
            average.copy_(kept)
