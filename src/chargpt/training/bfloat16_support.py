"""Detects devices with fast bfloat16 matrix multiplication."""

import torch


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 matrices several times as fast as float32 matrices.

    True for GPUs from Ampere on and for CPUs with Intel AMX. On other CPUs torch emulates it, up to 40 times as slow.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and _has_amx()


def _has_amx() -> bool:
    return torch.cpu.get_capabilities().get("amx_tile", False)
