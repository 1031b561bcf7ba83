"""An optimizer's state from a file: torch takes it as it is, and its fused kernels write where it says."""

from collections.abc import Mapping
from itertools import chain
from typing import Any

import torch
from torch import Tensor

# What torch's fused kernels go through together with the parameter, element by element, and check no length of.
FUSED_STATE_KEYS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer", "sum")


def check_optimizer_state(saved: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> None:
    """That a saved state was made by such an optimizer, over such parameters.

    Args:
        saved: its `state_dict()`; one that names its parameters, as FSDP's does, is for FSDP to check.
        optimizer: a new one, made by the same config.

    Raises:
        ValueError: says what is otherwise.
    """
    for old, new in zip(saved["param_groups"], optimizer.param_groups, strict=True):
        if old.get("amsgrad", False) != new.get("amsgrad", False):  # a kernel would go through a list that is empty
            raise ValueError(f"the optimizer's amsgrad is {old['amsgrad']}")
        for name in new.keys() & old.keys() - {"params"}:
            if not _same_type(old[name], new[name]):
                raise ValueError(f"the optimizer's {name} is {old[name]!r}, where a new one has {new[name]!r}")
    numbers = chain.from_iterable(group["params"] for group in saved["param_groups"])
    parameters = chain.from_iterable(group["params"] for group in optimizer.param_groups)
    for number, parameter in zip(numbers, parameters, strict=True):
        state = saved["state"].get(number, {})
        for name in FUSED_STATE_KEYS:
            if state.get(name) is not None and not _same_layout(state[name], parameter):
                raise ValueError(f"the optimizer's {name} of parameter {number} is not of its shape")
        step = state.get("step", 0.0)
        if not isinstance(step, float | int) and not _same_layout(step, torch.zeros(())):
            raise ValueError(f"the optimizer's step of parameter {number} is no number")


def _same_type(one: Any, other: Any) -> bool:
    """Whether two settings are of one type, and as long."""
    if isinstance(other, tuple | list):
        return isinstance(one, tuple | list) and len(one) == len(other) and all(map(_same_type, one, other))
    numbers = isinstance(one, float | int) and isinstance(other, float | int)
    return numbers or isinstance(one, type(other)) or None in (one, other)


def _same_layout(given: Any, tensor: Tensor) -> bool:
    """Whether it is a tensor of the same shape, each of whose elements has its own place in memory."""
    return (
        isinstance(given, Tensor)
        and given.layout == torch.strided
        and given.device.type != "meta"
        and not given.is_quantized
        and given.shape == tensor.shape
        and (given.stride() == tensor.stride() or (given.is_contiguous() and tensor.is_contiguous()))
    )
