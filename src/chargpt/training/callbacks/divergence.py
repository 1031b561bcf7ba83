"""A loss that is no longer a number: it is seen at its step, nothing of it is saved, and a run may go back."""

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
MAX_ROLLBACKS = 3  # times that one run goes back


class DivergenceRollback(L.Callback):
    """How often the run has gone back to its last good checkpoint; each time the learning rate is halved.

    What a run has diverged at travels in its checkpoints, so that one that is cut off goes on with the same rate.

    Args:
        way: `stop`, or `rollback`: what is done when the loss is no longer a number.
        steps: those at which it diverged, if this process has seen it; otherwise the checkpoint says them.
    """

    state_key = "Rollbacks"

    def __init__(self, way: str, steps: Sequence[int]):
        if way not in ON_DIVERGENCE:
            raise UserError(f"on_divergence={way}: it is one of {', '.join(ON_DIVERGENCE)}")
        self.way, self.steps = way, list(steps)
        self._seen = bool(steps)

    @property
    def lr_scale(self) -> float:
        """Factor of every learning rate."""
        return 0.5 ** len(self.steps)

    def can_roll_back(self) -> bool:
        return self.way == "rollback" and len(self.steps) < MAX_ROLLBACKS

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if not self._seen:
            self.steps = state_dict["steps"]


class NonFiniteLossDetector:
    """Whether the losses of a step were numbers, without waiting for the device.

    The losses are copied to pinned memory, behind the step that they come from on the device's stream. On a GPU
    they are read one step later: the event behind their copy has then passed, although the device may still be at
    the newest step. On a CPU the values are read at once.

    Args:
        passes: forward passes of a step, each with a loss of its own.
    """

    def __init__(self, device: torch.device, passes: int):
        self._on_gpu = device.type == "cuda"
        self._lag = 0 if device.type == "cpu" else 1
        host_SP = torch.zeros(self._lag + 1, passes, pin_memory=self._on_gpu)
        self._slots = list(host_SP)
        self._values_SP = host_SP.numpy()  # the same memory, read without an operation of torch's
        self._copied: deque[tuple[int, torch.cuda.Event | None]] = deque()
        self._count = 0

    def is_non_finite(self, losses: Sequence[Tensor]) -> bool:
        """Called once a step, with the newest step's losses; with none of them after they were looked at already.

        Returns:
            Whether one is not a number: of these on a CPU, of those of the call before on other devices.
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
    """The mean over all ranks of each loss since the last point of the curves. Called on all ranks, for N >= 1."""
    losses_N = torch.stack([loss.to(module.device) for loss in module.train_losses])
    return trainer.strategy.reduce(losses_N, reduce_op="mean")


def first_non_finite_step(losses_N: torch.Tensor, step: int, passes: int) -> int:
    """The step of the first loss that is not a number, of those of N passes the last of which ended `step`."""
    first = int((~torch.isfinite(losses_N)).nonzero()[0])
    return step - (len(losses_N) - 1 - first) // passes


def check_weights(trainer: L.Trainer, module: LanguageModeling) -> None:
    """Raises `DivergenceError` if a weight is not finite, so that no useless checkpoint is saved."""
    if isinstance(trainer.strategy, FSDPStrategy):  # a rank has a part, and all must do the same
        return
    if not torch.isfinite(get_total_norm([p.detach() for p in module.parameters()])):
        raise DivergenceError(f"the weights are no longer numbers after step {trainer.global_step}: {ADVICE}")
