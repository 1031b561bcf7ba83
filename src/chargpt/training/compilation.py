"""torch.compile: decides whether it is worthwhile, and compiles the forward and backward pass of a step."""

import logging
import os
import shutil
import sys
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, cast

import lightning as L
import torch
from lightning.pytorch.strategies import FSDPStrategy
from torch import Tensor

from chargpt.data.dataloader import RandomBlockLoader
from chargpt.errors import TrainingError, UserError
from chargpt.model.transformer import Block
from chargpt.training.callbacks.timer import TrainingTimer, synchronize
from chargpt.training.lightning_module import LanguageModeling
from chargpt.training.out_of_memory import is_out_of_memory

log = logging.getLogger(__name__)

Loss = Callable[[Tensor, Tensor], Tensor]

# The values of `trainer.compile` besides true, false and auto.
COMPILE_MODES = {
    "inductor": "fused kernels",
    "reduce-overhead": "fused kernels, launched together as CUDA graphs",
    "cudagraphs": "torch's own kernels, launched together as CUDA graphs",
    "blocks": "fused kernels for one block, used by all of them",
}
CUDA_GRAPH_MODES = ("reduce-overhead", "cudagraphs")
TRITON_CAPABILITY = (7, 0)  # the lowest compute capability for which Inductor generates Triton kernels
# The minimum length of a GPU run that `auto` compiles. It is an estimate, not a measurement: compiling gpt_small
# takes 45 s and saves 4 ms of a step of 10 ms, so it breaks even after 11,000 steps or 110 s of training; the time
# is doubled because smaller models save less. The kit in experiments/gpu measures these values. On a CPU compiling
# never breaks even (experiments/speed).
MIN_STEPS, MIN_SECONDS = 11_000, 220


def is_worthwhile(device_type: str, max_steps: int, max_seconds: float | None) -> bool:
    """Whether `trainer.compile=auto` compiles, depending on the planned length of the run."""
    if device_type != "cuda":
        return False
    return max_steps >= MIN_STEPS if max_steps > 0 else (max_seconds or 0) >= MIN_SECONDS


class Compilation(L.Callback):
    """Compiles the forward and backward pass before the first step, and records the time as `compilation`.

    Args:
        setting: `trainer.compile`: true, false, auto, or one of `COMPILE_MODES`.
        max_seconds: the run's time budget.
        timer: records the time that compilation takes.
    """

    def __init__(self, setting: Any, max_seconds: float | None, timer: TrainingTimer):
        self._setting, self._max_seconds, self._timer = setting, max_seconds, timer
        self._mode: str | None = None

    def decide(self, trainer: L.Trainer) -> None:
        """Decides whether to compile, and in which mode.

        Raises:
            UserError: the setting is invalid, or this machine or this run does not support it.
        """
        if not isinstance(self._setting, bool) and self._setting not in ("auto", *COMPILE_MODES):
            raise UserError(
                f"trainer.compile={self._setting}: it must be true, false, auto, {', '.join(COMPILE_MODES)}"
            )
        device_type = trainer.strategy.root_device.type
        requested, sharded = self._setting not in (False, "auto"), isinstance(trainer.strategy, FSDPStrategy)
        if requested and sharded:
            raise UserError(f"trainer.compile={self._setting}: not supported with FSDP; remove it")
        worthwhile = not sharded and is_worthwhile(device_type, trainer.max_steps, self._max_seconds)
        if not requested and not (self._setting == "auto" and worthwhile):
            return
        # Each replay of a CUDA graph overwrites its outputs, so gradients cannot be accumulated, or reduced over ranks.
        supports_graphs = trainer.world_size == 1 and trainer.accumulate_grad_batches == 1
        best = "reduce-overhead" if device_type == "cuda" and supports_graphs else "inductor"
        mode = self._setting if self._setting in COMPILE_MODES else best
        if mode in CUDA_GRAPH_MODES and (device_type != "cuda" or not supports_graphs):
            required = "one CUDA GPU and trainer.accumulate_grad_batches=1"
            raise UserError(f"trainer.compile={mode}: it requires {required}; use trainer.compile=inductor")
        if reason := unavailable_reason(device_type, mode):
            if requested:
                setting = str(self._setting).lower()
                raise UserError(f"trainer.compile={setting}: {reason}; set trainer.compile=false")
            log.warning("not compiled, so training is slower: %s", reason)
        else:
            self._mode = mode

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, LanguageModeling)  # Lightning declares its base class
        if self._mode is None or trainer.should_stop or pl_module.train_loss_fn != pl_module.loss:
            return
        self._timer.start_activity("compilation", pl_module.device)
        graphs = self._mode in CUDA_GRAPH_MODES
        loss = _compiled(pl_module, self._mode)
        try:
            self._warm_up(loss, trainer, pl_module, passes=3 if graphs else 1)  # the second pass records the graph
            pl_module.train_loss_fn = loss
            synchronize(pl_module.device)
            log.info("compiled in %.0f s", self._timer.seconds()["compilation"])
        except Exception as error:
            if is_out_of_memory(error):  # the step itself does not fit, with or without compilation
                raise
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            if self._setting != "auto":
                raise TrainingError(f"torch.compile failed: {reason}. Set trainer.compile=false") from error
            log.warning("not compiled, so training is slower: %s", reason)
            torch.compiler.reset()
        self._timer.start_activity("setup", pl_module.device)

    @staticmethod
    def _warm_up(loss: Loss, trainer: L.Trainer, pl_module: L.LightningModule, passes: int) -> None:
        """Runs forward and backward passes on batches of all shapes of the run, so that nothing is compiled later."""
        batches = cast(RandomBlockLoader, trainer.train_dataloader)  # declared as `Any | None`
        parameters = [p for p in pl_module.parameters() if p.requires_grad]
        for inputs_BT, targets_BT in batches.one_batch_per_length():
            for _ in range(passes):
                with trainer.precision_plugin.train_step_context():
                    value = loss(inputs_BT, targets_BT)
                torch.autograd.grad(value, parameters, allow_unused=True)


def _compiled(pl_module: LanguageModeling, mode: str) -> Loss:
    """The module's loss, compiled in one of `COMPILE_MODES`."""
    if mode == "blocks":
        return _with_compiled_blocks(pl_module)
    settings: dict[str, Any] = {"inductor": {}, "reduce-overhead": {"mode": mode}, "cudagraphs": {"backend": mode}}
    compiled = torch.compile(pl_module.loss, dynamic=False, **settings[mode])

    def loss(inputs_BT: Tensor, targets_BT: Tensor) -> Tensor:
        if mode in CUDA_GRAPH_MODES:
            torch.compiler.cudagraph_mark_step_begin()
        return compiled(inputs_BT, targets_BT)

    return loss


def _with_compiled_blocks(pl_module: LanguageModeling) -> Loss:
    """Compiles the blocks for the training step only, because validation and sampling call them with other shapes."""
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


def unavailable_reason(device_type: str, mode: str) -> str | None:
    """The reason why torch.compile does not work on this machine; None if it works."""
    if mode == "cudagraphs":  # it compiles no kernels
        return None
    if device_type == "cuda":
        works = find_spec("triton") is not None and torch.cuda.get_device_capability() >= TRITON_CAPABILITY
        return None if works else "torch.compile requires Triton on a GPU, and no working version was found"
    compiler = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")  # as Inductor does
    if shutil.which(compiler) is None:
        return f"torch.compile requires a C++ compiler on a CPU, and {compiler} was not found"
    return None
