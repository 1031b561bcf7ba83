"""`trainer.precision=fastest` on a CPU: bfloat16 for the operations that are faster with it on this processor.

Whether they are depends on the processor and on torch's kernels for it, so a few of them are measured. What was chosen
is saved in the checkpoint and used again when the run is resumed or repeated, because it changes the results.
"""

import contextlib
import hashlib
import json
import logging
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.accelerators import MPSAccelerator
from lightning.pytorch.plugins import Precision
from platformdirs import user_cache_dir
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
from chargpt.utils.atomic_write import atomic_write_text
from chargpt.utils.processor import processor_name

log = logging.getLogger(__name__)

CACHE_FILE = "cpu_dtypes.json"
ROUNDS = 7  # of a measurement; the fastest counts
HOPELESS = 3.0  # a first call that takes this many times as long as in float32 is not repeated
GAIN = 0.9  # bfloat16 is chosen if it takes at most this fraction of the time of float32


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
    return dtypes and {"processor": _processor(), **asdict(dtypes)}


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
    if dtypes is None or earlier.get("processor") != _processor():
        fastest = fastest_dtypes()
        if dtypes is not None and dtypes != fastest:
            log.info("trainer.precision=fastest: another processor than before; results are not bit-identical")
        dtypes = fastest
    set_cpu_dtypes(dtypes)


def _from_plain(saved: Any) -> CPUDtypes | None:
    if not isinstance(saved, dict) or saved.keys() != OPTIONS.keys():
        return None
    return CPUDtypes(**saved) if all(saved[name] in options for name, options in OPTIONS.items()) else None


def _processor() -> str:
    """The processor and torch's version. In a virtual machine, different processors may have the same model name."""
    features = sorted(name for name, value in torch.cpu.get_capabilities().items() if value is True)
    instructions = hashlib.sha256(" ".join(features).encode()).hexdigest()[:8]
    return f"{processor_name()} {instructions}, torch {torch.__version__}"


def fastest_dtypes(cache: Path | None = None) -> CPUDtypes:
    """The fastest type of each operation on this processor; measured once, then read from a file.

    Args:
        cache: the folder of the file; by default the user's cache folder.
    """
    file = (cache or Path(user_cache_dir("chargpt"))) / CACHE_FILE
    known: dict[str, Any] = {}
    with contextlib.suppress(OSError, ValueError):
        content = json.loads(file.read_text())
        known = content if isinstance(content, dict) else {}
    dtypes = _from_plain(known.get(_processor()))
    if dtypes is None:
        dtypes = measure()
        with contextlib.suppress(OSError):  # a cache folder that cannot be written
            file.parent.mkdir(parents=True, exist_ok=True)
            atomic_write_text(file, json.dumps(known | {_processor(): asdict(dtypes)}, indent=2) + "\n")
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
    work, options = WORK[operation](), OPTIONS[operation]
    seconds = {option: [_seconds(work, option)] for option in options}  # this call includes torch's preparations
    hopeless = HOPELESS * max(1e-3, seconds[FLOAT32][0])
    for _ in range(ROUNDS):
        for option in options:
            if seconds[option][0] < hopeless:
                seconds[option].append(_seconds(work, option))
    best = {option: min(times) for option, times in seconds.items()}
    fastest = min(options, key=lambda option: best[option])
    return fastest if best[fastest] <= GAIN * best[FLOAT32] else FLOAT32


def _seconds(work: Callable[[str], object], option: str) -> float:
    start = time.perf_counter()
    work(option)
    return time.perf_counter() - start


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
