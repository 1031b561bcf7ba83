"""torch.compile: whether it pays, and the step's forward and backward pass compiled."""

import logging
from collections.abc import Callable
from typing import Any

import lightning as L
import torch
from lightning.pytorch.strategies import FSDPStrategy
from torch import Tensor

from chargpt.data.blocks import RandomBlocks
from chargpt.errors import Failed, Mistake
from chargpt.training.clock import TrainingClock, synchronize

log = logging.getLogger(__name__)

Loss = Callable[[Tensor, Tensor], Tensor]

# A run as long as this gets its compile time (half a minute to two) back on a GPU: an estimate, not yet measured.
# On a CPU it does not come back at all (experiments/speed).
STEPS, SECONDS = 3000, 180


def pays(device_type: str, max_steps: int, max_seconds: float | None) -> bool:
    """What `trainer.compile=auto` decides, by the planned length of the whole run."""
    if device_type != "cuda":
        return False
    return max_steps >= STEPS if max_steps > 0 else (max_seconds or 0) >= SECONDS


class Compilation(L.Callback):
    """Compiles the step's forward and backward pass before the first step, on the clock's own account.

    Args:
        setting: `trainer.compile`: true, false or auto.
        max_seconds: the run's time budget.
        clock: what the compile time is booked with.
    """

    def __init__(self, setting: Any, max_seconds: float | None, clock: TrainingClock):
        self._setting, self._max_seconds, self._clock = setting, max_seconds, clock
        self._wanted = False

    def decide(self, trainer: L.Trainer) -> None:
        """Whether to compile.

        Raises:
            Mistake: the setting is none of the three, or compiling was asked for and this machine cannot.
        """
        if not isinstance(self._setting, bool) and self._setting != "auto":
            raise Mistake(f"trainer.compile={self._setting}: it is true, false or auto")
        device_type = trainer.strategy.root_device.type
        asked, sharded = self._setting is True, isinstance(trainer.strategy, FSDPStrategy)
        if asked and sharded:
            raise Mistake("trainer.compile=true does not go with FSDP here: leave it out")
        worth_it = not sharded and pays(device_type, trainer.max_steps, self._max_seconds)
        self._wanted = asked or (self._setting == "auto" and worth_it)
        if self._wanted and (reason := _hindrance(device_type)):
            if asked:
                raise Mistake(f"trainer.compile=true: {reason}; trainer.compile=false does without")
            log.warning("not compiled, so slower than it could be: %s", reason)
            self._wanted = False

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not self._wanted or trainer.should_stop or pl_module.train_loss != pl_module.loss:
            return
        self._clock.turn_to("compilation", pl_module.device)
        # CUDA graphs keep what a step gives back only until the next step: not for gradients that are gathered.
        alone = trainer.world_size == 1 and trainer.accumulate_grad_batches == 1
        graphs = pl_module.device.type == "cuda" and alone
        fast = torch.compile(pl_module.loss, dynamic=False, mode="reduce-overhead" if graphs else "default")

        def loss(inputs_BT: Tensor, targets_BT: Tensor) -> Tensor:
            if graphs:
                torch.compiler.cudagraph_mark_step_begin()
            return fast(inputs_BT, targets_BT)

        try:
            self._warm_up(loss, trainer, pl_module, passes=3 if graphs else 1)  # the second is recorded
            pl_module.train_loss = loss
            synchronize(pl_module.device)
            log.info("compiled in %.0f s", self._clock.seconds()["compilation"])
        except Exception as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            if self._setting is True:
                raise Failed(f"torch.compile failed: {reason}. trainer.compile=false does without") from error
            log.warning("not compiled, so slower than it could be: %s", reason)
            torch.compiler.reset()
        self._clock.turn_to("setup", pl_module.device)

    @staticmethod
    def _warm_up(loss: Loss, trainer: L.Trainer, pl_module: L.LightningModule, passes: int) -> None:
        """The passes of a step on batches laid out as those to come, so that nothing is compiled again."""
        batches: RandomBlocks = trainer.train_dataloader
        parameters = [p for p in pl_module.parameters() if p.requires_grad]
        for inputs_BT, targets_BT in batches.layouts():
            for _ in range(passes):
                with trainer.precision_plugin.train_step_context():
                    value = loss(inputs_BT, targets_BT)
                torch.autograd.grad(value, parameters, allow_unused=True)


def _hindrance(device_type: str) -> str | None:
    """Why nothing can be compiled here; None if it can."""
    if device_type == "cuda":
        from torch.utils._triton import has_triton

        return None if has_triton() else "torch.compile needs Triton on a GPU, and there is none that works here"
    from torch._inductor import cpp_builder, exc

    try:
        cpp_builder.get_cpp_compiler()
    except exc.InvalidCxxCompiler:
        return "torch.compile needs a C++ compiler on a CPU, and there is none here"
    return None
