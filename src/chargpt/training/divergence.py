"""A loss that is no longer a number: it is seen at its step, nothing of it is saved, and a run may go back."""

import math
from collections.abc import Sequence
from typing import Any

import lightning as L
import torch
from lightning.pytorch.strategies import FSDPStrategy

from chargpt.errors import Diverged, Mistake
from chargpt.training.module import LanguageModeling, total_norm

ADVICE = "try a lower optimizer.lr or trainer.gradient_clip_val=1.0"
WAYS = ("stop", "rollback")
MOST = 3  # times that one run goes back


class Rollbacks(L.Callback):
    """How often the run has gone back to its last good checkpoint; each time the learning rate is halved.

    What a run has diverged at travels in its checkpoints, so that one that is cut off goes on with the same rate.

    Args:
        way: `stop`, or `rollback`: what is done when the loss is no longer a number.
        steps: those at which it diverged, if this process has seen it; otherwise the checkpoint says them.
    """

    def __init__(self, way: str, steps: Sequence[int]):
        if way not in WAYS:
            raise Mistake(f"on_divergence={way}: it is one of {', '.join(WAYS)}")
        self.way, self.steps = way, list(steps)
        self._seen = bool(steps)

    @property
    def lr_scale(self) -> float:
        """Factor of every learning rate."""
        return 0.5 ** len(self.steps)

    def may_go_back(self) -> bool:
        return self.way == "rollback" and len(self.steps) < MOST

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if not self._seen:
            self.steps = state_dict["steps"]


def is_lost(trainer: L.Trainer, module: LanguageModeling) -> bool:
    """Whether the last step's loss, on this rank, is not a number; asked between two steps.

    On a CPU its value is there. On other devices that of the step before is looked at, so that nothing waits.
    """
    passes = trainer.accumulate_grad_batches
    losses = module.train_losses
    losses = losses[-passes:] if module.device.type == "cpu" else losses[-2 * passes : -passes]
    return not all(math.isfinite(loss.item()) for loss in losses)


def first_lost(losses_N: torch.Tensor, step: int, passes: int) -> int:
    """The step of the first loss that is not a number, of those of N passes the last of which ended `step`."""
    first = int((~torch.isfinite(losses_N)).nonzero()[0])
    return step - (len(losses_N) - 1 - first) // passes


def check_weights(trainer: L.Trainer, module: LanguageModeling) -> None:
    """Raises `Diverged` before a checkpoint that is worth nothing: the step after a good loss can be too long."""
    if isinstance(trainer.strategy, FSDPStrategy):  # a rank has a part, and all must do the same
        return
    if not torch.isfinite(total_norm([p.detach() for p in module.parameters()])):
        raise Diverged(f"the weights are no longer numbers after step {trainer.global_step}: {ADVICE}")
