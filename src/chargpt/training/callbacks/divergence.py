"""Detects non-finite losses and weights (`InterruptHandler` stops the run), and counts rollbacks."""

from collections import deque
from collections.abc import Sequence
from typing import Any

import lightning as L
import numpy as np
import torch
from jaxtyping import Float
from lightning.pytorch.strategies import FSDPStrategy
from torch import Tensor
from torch.nn.utils import get_total_norm

from chargpt.errors import DivergenceError, UserError
from chargpt.training.lightning_module import LanguageModeling

ADVICE = "try a lower optimizer.lr or trainer.gradient_clip_val=1.0"
ON_DIVERGENCE = ("stop", "rollback")
MAX_ROLLBACKS = 3  # per run


class DivergenceRollback(L.Callback):
    """Counts the rollbacks of a run to its last good checkpoint; each one halves the learning rate.

    The steps at which it diverged are saved in checkpoints, so that an interrupted run resumes with the same rate.

    Args:
        action: `stop` or `rollback`, applied when the loss is not finite.
        steps: the steps at which the run diverged in this process; if empty, they are loaded from the checkpoint.
    """

    def __init__(self, action: str, steps: Sequence[int]):
        if action not in ON_DIVERGENCE:
            raise UserError(f"on_divergence={action}: it must be one of {', '.join(ON_DIVERGENCE)}")
        self.action, self.steps = action, list(steps)
        self._diverged_here = bool(steps)

    @property
    def state_key(self) -> str:
        return "Rollbacks"

    @property
    def lr_scale(self) -> float:
        """Factor of every learning rate."""
        return 0.5 ** len(self.steps)

    def can_roll_back(self) -> bool:
        return self.action == "rollback" and len(self.steps) < MAX_ROLLBACKS

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if not self._diverged_here:
            self.steps = state_dict["steps"]


class NonFiniteLossDetector:
    """Detects losses that are NaN or infinite, without synchronizing with the device.

    The losses are copied to pinned memory on the device's stream, after the step that computed them. On a GPU they
    are read one step later: the event of their copy has then completed, although the device may still compute the
    newest step. On a CPU they are read immediately.

    Args:
        passes: forward passes per step, each with its own loss.
    """

    def __init__(self, device: torch.device, passes: int):
        self._on_gpu = device.type == "cuda"
        self._lag = 0 if device.type == "cpu" else 1
        host_SP = torch.zeros(self._lag + 1, passes, pin_memory=self._on_gpu)
        self._slots = list(host_SP)
        self._values_SP = host_SP.numpy()  # the same memory, read without a torch operation
        self._copied: deque[tuple[int, torch.cuda.Event | None]] = deque()
        self._count = 0

    def is_non_finite(self, losses: Sequence[Tensor]) -> bool:
        """Checks losses. Called once per step with the losses of the newest step; empty if they were already checked.

        Returns:
            Whether one of these losses (on a CPU), or of those of the previous call (on other devices), is not finite.
        """
        if losses:
            slot = self._count % len(self._slots)
            self._count += 1
            self._slots[slot].copy_(torch.stack(tuple(losses)), non_blocking=self._on_gpu)
            event = torch.cuda.Event(blocking=True) if self._on_gpu else None
            if event is not None:
                event.record()
            self._copied.append((slot, event))
        if len(self._copied) <= self._lag:
            return False
        slot, event = self._copied.popleft()
        if event is not None:
            event.synchronize()
        return not np.isfinite(self._values_SP[slot]).all()


def mean_losses(trainer: L.Trainer, module: LanguageModeling) -> Float[Tensor, " N"]:
    """The mean over all ranks of each of the N >= 1 losses since the last logged point. Called on all ranks."""
    losses_N = torch.stack([loss.to(module.device) for loss in module.train_losses])
    return trainer.strategy.reduce(losses_N, reduce_op="mean")


def first_non_finite_step(losses_N: torch.Tensor, step: int, passes: int) -> int:
    """The step of the first non-finite loss among those of the last N passes, which end with `step`."""
    first = int((~torch.isfinite(losses_N)).nonzero()[0])
    return step - (len(losses_N) - 1 - first) // passes


def check_weights(trainer: L.Trainer, module: L.LightningModule) -> None:
    """Raises `DivergenceError` if a weight is not finite, so that no such checkpoint is saved."""
    if isinstance(trainer.strategy, FSDPStrategy):  # a rank has only a shard, so decisions could differ
        return
    if not torch.isfinite(get_total_norm([p.detach() for p in module.parameters()])):
        raise DivergenceError(f"the weights are not finite after step {trainer.global_step}: {ADVICE}")
