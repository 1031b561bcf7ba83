"""Checks an optimizer state from a file, because torch's fused kernels do not check the sizes of its tensors."""

from collections.abc import Mapping
from itertools import chain
from typing import Any

import torch
from torch import Tensor

# State tensors that torch's fused kernels access element by element, together with the parameter, without size checks.
FUSED_STATE_KEYS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer", "sum")


def check_optimizer_state(saved: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> None:
    """Checks that a saved state fits an optimizer and its parameters.

    Args:
        saved: a `state_dict()` with numbered parameters; FSDP checks its own format, with named parameters.
        optimizer: a new optimizer, built from the same config.

    Raises:
        ValueError: the number of groups, a setting or a state tensor does not match.
    """
    for old, new in zip(saved["param_groups"], optimizer.param_groups, strict=True):
        if old.get("amsgrad", False) != new.get("amsgrad", False):  # a kernel would index an empty list
            raise ValueError(f"the optimizer's amsgrad is {old['amsgrad']}")
        for name in new.keys() & old.keys() - {"params"}:
            if not _same_type(old[name], new[name]):
                raise ValueError(f"the optimizer's {name} is {old[name]!r}, but its config sets {new[name]!r}")
    numbers = chain.from_iterable(group["params"] for group in saved["param_groups"])
    parameters = chain.from_iterable(group["params"] for group in optimizer.param_groups)
    for number, parameter in zip(numbers, parameters, strict=True):
        state = saved["state"].get(number, {})
        for name in FUSED_STATE_KEYS:
            if state.get(name) is not None and not _same_layout(state[name], parameter):
                raise ValueError(f"the optimizer's {name} of parameter {number} does not have the parameter's shape")
        step = state.get("step", 0.0)
        if not isinstance(step, float | int) and not _same_layout(step, torch.zeros(())):
            raise ValueError(f"the optimizer's step of parameter {number} is not a number")


def _same_type(one: Any, other: Any) -> bool:
    """Whether two settings have the same type and length."""
    if isinstance(other, tuple | list):
        return isinstance(one, tuple | list) and len(one) == len(other) and all(map(_same_type, one, other))
    numbers = isinstance(one, float | int) and isinstance(other, float | int)
    return numbers or isinstance(one, type(other)) or None in (one, other)


def _same_layout(value: Any, tensor: Tensor) -> bool:
    """Whether the value is a tensor of the same shape whose elements do not share memory."""
    return (
        isinstance(value, Tensor)
        and value.layout == torch.strided
        and value.device.type != "meta"
        and not value.is_quantized
        and value.shape == tensor.shape
        and (value.stride() == tensor.stride() or (value.is_contiguous() and tensor.is_contiguous()))
    )
