"""Whether products in bfloat16 are worth it on a device."""

import torch


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies matrices of bfloat16 several times as fast as of float32.

    GPUs from Ampere on, and CPUs with Intel's AMX; on other CPUs torch emulates it, up to 40 times as slow.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and _has_amx()


def _has_amx() -> bool:
    return torch.cpu.get_capabilities().get("amx_tile", False)
