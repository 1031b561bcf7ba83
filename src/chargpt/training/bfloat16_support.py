"""Detects devices with fast bfloat16 matrix multiplication."""

import torch

from chargpt.model.kernels.cpu_dtypes import BFLOAT16, get_cpu_dtypes


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 matrices several times as fast as float32 matrices.

    True for GPUs from Ampere on, and for a CPU if `trainer.precision=fastest` has chosen it for orthogonalization.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    dtypes = get_cpu_dtypes()
    return device.type == "cpu" and dtypes is not None and dtypes.orthogonalization == BFLOAT16
