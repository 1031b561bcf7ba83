"""Converts the Trainer's settings that count epochs or fractions of an epoch to optimizer steps."""

import math
from collections.abc import Mapping
from typing import Any

from chargpt.errors import UserError


def check(settings: Mapping[str, Any]) -> None:
    """Raises `UserError` for a length or interval of the config's `trainer` that is out of range."""
    for name in ("min_steps", "min_epochs", "check_val_every_n_epoch"):
        if settings.get(name) is not None and settings[name] < 1:
            raise UserError(f"trainer.{name}={settings[name]}: it must be 1 or more, or null")
    interval = settings["val_check_interval"]
    if not (0 < interval <= 1 if isinstance(interval, float) else interval >= 1):
        raise UserError(
            f"trainer.val_check_interval={interval}: it must be 1 or more optimizer steps, or a fraction of an epoch "
            f"from 0.0 to 1.0"
        )
    epochs = settings.get("max_epochs")
    if epochs is not None and epochs < 1 and epochs != -1:
        raise UserError(f"trainer.max_epochs={epochs}: it must be 1 or more, or null for no limit")
    other_end = settings.get("max_time") or (epochs or -1) > 0
    if settings["max_steps"] < 1 and not (settings["max_steps"] == -1 and other_end):
        raise UserError(
            f"trainer.max_steps={settings['max_steps']}: it must be 1 or more, or -1 with a trainer.max_time or "
            f"trainer.max_epochs"
        )
    if (settings.get("fast_dev_run") or 0) < 0:
        raise UserError(f"trainer.fast_dev_run={settings['fast_dev_run']}: it must be true, false or a number of steps")


def max_steps(settings: Mapping[str, Any], batches_per_epoch: int) -> int:
    """The optimizer step at which the run ends; -1 if only the time limits it.

    Args:
        settings: the config's `trainer`.
    """
    if steps := settings.get("fast_dev_run"):
        return int(steps)
    ends = [settings["max_steps"], _steps(settings, "max_epochs", batches_per_epoch)]
    return min((end for end in ends if end is not None and end > 0), default=-1)


def length(settings: Mapping[str, Any], batches_per_epoch: int) -> str:
    """The setting at which the run ends, such as `trainer.max_steps=2000`, for messages."""
    end = max_steps(settings, batches_per_epoch)
    names = ("fast_dev_run",) if settings.get("fast_dev_run") else ("max_steps", "max_epochs")
    name = names[0] if len(names) == 1 or settings["max_steps"] == end else "max_epochs"
    return f"trainer.{name}={settings[name]}"


def min_steps(settings: Mapping[str, Any], batches_per_epoch: int) -> int | None:
    """The optimizer step before which early stopping does not end the run; None with `fast_dev_run`."""
    if settings.get("fast_dev_run"):
        return None
    steps = [settings.get("min_steps"), _steps(settings, "min_epochs", batches_per_epoch)]
    return max((step for step in steps if step is not None), default=None)


def val_check_interval(settings: Mapping[str, Any], batches_per_epoch: int) -> int:
    """The number of optimizer steps between validations."""
    if steps := settings.get("fast_dev_run"):
        return int(steps)
    if settings.get("check_val_every_n_epoch") is not None:
        return _steps(settings, "check_val_every_n_epoch", batches_per_epoch) or 1
    if isinstance(settings["val_check_interval"], float):
        return _steps(settings, "val_check_interval", batches_per_epoch) or 1
    return settings["val_check_interval"]


def _steps(settings: Mapping[str, Any], name: str, batches_per_epoch: int) -> int | None:
    """The first optimizer step by which a number of epochs is complete; None for no number, -1 for no limit."""
    epochs = settings.get(name)
    if epochs is None or epochs < 0:
        return epochs
    return math.ceil(epochs * batches_per_epoch / settings["accumulate_grad_batches"] - 1e-9)
