"""torch.compile: whether it pays, and the step's forward and backward pass compiled."""

import logging
import os
import shutil
import sys
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import lightning as L
import torch
from lightning.pytorch.strategies import FSDPStrategy
from torch import Tensor

from chargpt.data.dataloader import RandomBlockLoader
from chargpt.errors import TrainingError, UserError
from chargpt.model.transformer import Block
from chargpt.training.callbacks.timer import TrainingTimer, synchronize
from chargpt.training.out_of_memory import is_out_of_memory

log = logging.getLogger(__name__)

Loss = Callable[[Tensor, Tensor], Tensor]

# What `trainer.compile` may be besides true, false and auto.
COMPILE_MODES = {
    "inductor": "fused kernels",
    "reduce-overhead": "fused kernels, launched together as CUDA graphs",
    "cudagraphs": "torch's own kernels, launched together as CUDA graphs",
    "blocks": "fused kernels for one block, used by all of them",
}
CUDA_GRAPH_MODES = ("reduce-overhead", "cudagraphs")
TRITON_CAPABILITY = (7, 0)  # the compute capability from which on Inductor writes Triton kernels for a GPU
# `auto` compiles a run on a GPU that is as long as this. It is an estimate, not a measurement: compiling gpt_small
# takes 45 s and saves 4 ms of a step of 10 ms, so it breaks even after 11,000 steps or 110 s of training; the time
# is doubled, since smaller models save less. The kit in experiments/gpu measures these figures. On a CPU compiling
# does not pay at all (experiments/speed).
MIN_STEPS, MIN_SECONDS = 11_000, 220


def is_worthwhile(device_type: str, max_steps: int, max_seconds: float | None) -> bool:
    """What `trainer.compile=auto` decides, by the planned length of the whole run."""
    if device_type != "cuda":
        return False
    return max_steps >= MIN_STEPS if max_steps > 0 else (max_seconds or 0) >= MIN_SECONDS


class Compilation(L.Callback):
    """Compiles the step's forward and backward pass before the first step, on the clock's own account.

    Args:
        setting: `trainer.compile`: true, false, auto, or one of `COMPILE_MODES`.
        max_seconds: the run's time budget.
        clock: what the compile time is booked with.
    """

    def __init__(self, setting: Any, max_seconds: float | None, timer: TrainingTimer):
        self._setting, self._max_seconds, self._timer = setting, max_seconds, timer
        self._way: str | None = None

    def decide(self, trainer: L.Trainer) -> None:
        """Whether to compile, and how.

        Raises:
            UserError: the setting is none of these, or this machine or this run cannot be compiled as it asks.
        """
        if not isinstance(self._setting, bool) and self._setting not in ("auto", *COMPILE_MODES):
            raise UserError(f"trainer.compile={self._setting}: it is true, false, auto, {', '.join(COMPILE_MODES)}")
        device_type = trainer.strategy.root_device.type
        asked, sharded = self._setting not in (False, "auto"), isinstance(trainer.strategy, FSDPStrategy)
        if asked and sharded:
            raise UserError(f"trainer.compile={self._setting} does not go with FSDP here: leave it out")
        worth_it = not sharded and is_worthwhile(device_type, trainer.max_steps, self._max_seconds)
        if not asked and not (self._setting == "auto" and worth_it):
            return
        # CUDA graphs keep what a step gives back only until the next step: not for gradients that are gathered.
        alone = trainer.world_size == 1 and trainer.accumulate_grad_batches == 1
        best = "reduce-overhead" if device_type == "cuda" and alone else "inductor"
        self._way = self._setting if self._setting in COMPILE_MODES else best
        if self._way in CUDA_GRAPH_MODES and (device_type != "cuda" or not alone):
            needed = "one CUDA GPU, and trainer.accumulate_grad_batches=1"
            raise UserError(f"trainer.compile={self._way} needs {needed}: take trainer.compile=inductor")
        if reason := why_unavailable(device_type, self._way):
            if asked:
                setting = str(self._setting).lower()
                raise UserError(f"trainer.compile={setting}: {reason}; trainer.compile=false does without")
            log.warning("not compiled, so slower than it could be: %s", reason)
            self._way = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._way is None or trainer.should_stop or pl_module.train_loss != pl_module.loss:
            return
        self._timer.start_activity("compilation", pl_module.device)
        graphs = self._way in CUDA_GRAPH_MODES
        loss = _compiled(pl_module, self._way)
        try:
            self._warm_up(loss, trainer, pl_module, passes=3 if graphs else 1)  # the second is recorded
            pl_module.train_loss = loss
            synchronize(pl_module.device)
            log.info("compiled in %.0f s", self._timer.seconds()["compilation"])
        except Exception as error:
            if is_out_of_memory(error):  # of the step itself: the warm-up is the first one
                raise
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            if self._setting != "auto":
                raise TrainingError(f"torch.compile failed: {reason}. trainer.compile=false does without") from error
            log.warning("not compiled, so slower than it could be: %s", reason)
            torch.compiler.reset()
        self._timer.start_activity("setup", pl_module.device)

    @staticmethod
    def _warm_up(loss: Loss, trainer: L.Trainer, pl_module: L.LightningModule, passes: int) -> None:
        """The passes of a step on batches laid out as those to come, so that nothing is compiled again."""
        batches: RandomBlockLoader = trainer.train_dataloader
        parameters = [p for p in pl_module.parameters() if p.requires_grad]
        for inputs_BT, targets_BT in batches.layouts():
            for _ in range(passes):
                with trainer.precision_plugin.train_step_context():
                    value = loss(inputs_BT, targets_BT)
                torch.autograd.grad(value, parameters, allow_unused=True)


def _compiled(pl_module: L.LightningModule, way: str) -> Loss:
    """The module's loss, compiled in one of `COMPILE_MODES`."""
    if way == "blocks":
        return _with_compiled_blocks(pl_module)
    settings: dict[str, Any] = {"inductor": {}, "reduce-overhead": {"mode": way}, "cudagraphs": {"backend": way}}
    fast = torch.compile(pl_module.loss, dynamic=False, **settings[way])

    def loss(inputs_BT: Tensor, targets_BT: Tensor) -> Tensor:
        if way in CUDA_GRAPH_MODES:
            torch.compiler.cudagraph_mark_step_begin()
        return fast(inputs_BT, targets_BT)

    return loss


def _with_compiled_blocks(pl_module: L.LightningModule) -> Loss:
    """Blocks are compiled for the training step alone: validation and samples call them with other shapes."""
    blocks = [module for module in pl_module.modules() if isinstance(module, Block)]
    compiled = [(block, torch.compile(block.forward, dynamic=False)) for block in blocks]

    def loss(inputs_BT: Tensor, targets_BT: Tensor) -> Tensor:
        for block, forward in compiled:
            block.forward = forward
        try:
            return pl_module.loss(inputs_BT, targets_BT)
        finally:
            for block, _ in compiled:
                del block.forward

    return loss


def why_unavailable(device_type: str, way: str) -> str | None:
    """Why nothing can be compiled here; None if it can."""
    if way == "cudagraphs":  # which compiles no kernels
        return None
    if device_type == "cuda":
        works = find_spec("triton") is not None and torch.cuda.get_device_capability() >= TRITON_CAPABILITY
        return None if works else "torch.compile needs Triton on a GPU, and there is none that works here"
    compiler = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")  # which Inductor takes
    if shutil.which(compiler) is None:
        return "torch.compile needs a C++ compiler on a CPU, and there is none here"
    return None
