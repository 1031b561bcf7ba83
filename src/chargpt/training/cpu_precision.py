"""`trainer.precision=fastest` on a CPU: bfloat16 for the operations that are faster with it on this processor.

Whether they are depends on the processor and on torch's kernels for it, so a few of them are measured. What was chosen
is saved in the checkpoint and used again when the run is resumed or repeated, because it changes the results.
"""

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from functools import partial
from typing import Any

import lightning as L
import torch
from lightning.pytorch.accelerators import MPSAccelerator
from lightning.pytorch.plugins import Precision
from torch import Tensor

from chargpt.model.kernels.causal_attention import causal_attention
from chargpt.model.kernels.cpu_dtypes import (
    BFLOAT16,
    FLOAT32,
    OPTIONS,
    CPUDtypes,
    get_cpu_dtypes,
    set_cpu_dtypes,
)
from chargpt.utils.measurements import fastest, measured, processor

log = logging.getLogger(__name__)

MEASUREMENT = "types of a training step"


class CPUPrecision(Precision):
    """float32 weights, and bfloat16 for the operations that `set_cpu_dtypes` names."""

    @property
    def precision(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride] - an attribute in Lightning
        return "bf16-mixed" if _uses_bfloat16() else "32-true"

    def forward_context(self) -> AbstractContextManager:
        # Without torch's cache of converted weights, as in Lightning: each weight is used once.
        return torch.autocast("cpu", torch.bfloat16, cache_enabled=False) if _uses_bfloat16() else nullcontext()


class BroadcastCPUDtypes(L.Callback):
    """Sets the types that rank 0 has chosen on all ranks, which may run on different processors."""

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if trainer.world_size > 1:
            set_cpu_dtypes(trainer.strategy.broadcast(get_cpu_dtypes()))


def _uses_bfloat16() -> bool:
    dtypes = get_cpu_dtypes()
    return dtypes is not None and dtypes.linear == BFLOAT16


def as_plain(dtypes: CPUDtypes | None) -> dict[str, str] | None:
    """The types and the processor, for checkpoints and provenance.json."""
    return dtypes and {"processor": processor(), **asdict(dtypes)}


def runs_on_cpu(accelerator: str) -> bool:
    """Whether a run with this `trainer.accelerator` uses the CPU."""
    has_gpu = torch.cuda.is_available() or MPSAccelerator.is_available()
    return accelerator == "cpu" or (accelerator == "auto" and not has_gpu)


def select_cpu_dtypes(settings: dict[str, Any], saved: Any) -> None:
    """Sets the types for a run: those with which it was trained before on this processor, or the fastest.

    Args:
        settings: the config's `trainer`. Without `precision=fastest`, or on a GPU, torch's autocast decides.
        saved: the result of `as_plain` of a run that is resumed or repeated; None, or invalid data, for a new run.
    """
    if settings["precision"] != "fastest" or not runs_on_cpu(settings["accelerator"]):
        set_cpu_dtypes(None)
        return
    earlier = saved if isinstance(saved, dict) else {}
    dtypes = _from_plain({name: value for name, value in earlier.items() if name != "processor"})
    if dtypes is None or earlier.get("processor") != processor():
        measured_dtypes = fastest_dtypes()
        if dtypes is not None and dtypes != measured_dtypes:
            log.info("trainer.precision=fastest: another processor than before; results are not bit-identical")
        dtypes = measured_dtypes
    set_cpu_dtypes(dtypes)


def _from_plain(saved: Any) -> CPUDtypes | None:
    if not isinstance(saved, dict) or saved.keys() != OPTIONS.keys():
        return None
    return CPUDtypes(**saved) if all(saved[name] in options for name, options in OPTIONS.items()) else None


def fastest_dtypes() -> CPUDtypes:
    """The fastest type of each operation on this processor; measured once."""
    dtypes = _from_plain(measured(MEASUREMENT, lambda: asdict(measure()), lambda known: _from_plain(known) is not None))
    assert dtypes is not None
    return dtypes


def measure() -> CPUDtypes:
    """Measures operations of a training step of a small model, in a fifth of a second.

    With one thread: other programs disturb several threads more, and hardly change the ratios.
    """
    current, threads = get_cpu_dtypes(), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        if _fastest("linear") == FLOAT32:
            return CPUDtypes()
        return CPUDtypes(BFLOAT16, _fastest("attention"), _fastest("orthogonalization"))
    finally:
        torch.set_num_threads(threads)
        set_cpu_dtypes(current)


def _fastest(operation: str) -> str:
    """The fastest type of an operation: float32 unless another is clearly faster."""
    work = WORK[operation]()
    return fastest({option: partial(work, option) for option in OPTIONS[operation]})


def _linear() -> Callable[[str], object]:
    x_NC, weight_OC = _normal(1536, 128), _normal(512, 128)
    return lambda dtype: x_NC.to(DTYPES[dtype]) @ weight_OC.to(DTYPES[dtype]).t()


def _attention() -> Callable[[str], object]:
    qkv = [_normal(12, 128, 2, 64).transpose(1, 2).requires_grad_() for _ in range(3)]

    def attend(option: str) -> None:
        set_cpu_dtypes(CPUDtypes(attention=option))
        q_BHTD, k_BHTD, v_BHTD = (x_BHTD.bfloat16() for x_BHTD in qkv)  # as linear layers return them
        y_BHTD = causal_attention(q_BHTD, k_BHTD, v_BHTD)
        torch.autograd.grad(y_BHTD, qkv, torch.ones_like(y_BHTD))

    return attend


def _orthogonalization() -> Callable[[str], object]:
    matrices_NCC = _normal(8, 128, 128)

    def multiply(dtype: str) -> Tensor:
        x_NCC = matrices_NCC.to(DTYPES[dtype])
        return torch.baddbmm(x_NCC, x_NCC, x_NCC)

    return multiply


def _normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


DTYPES = {FLOAT32: torch.float32, BFLOAT16: torch.bfloat16}
WORK = {"linear": _linear, "attention": _attention, "orthogonalization": _orthogonalization}
