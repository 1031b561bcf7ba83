"""Sends metrics, texts and hyperparameters to all loggers of a run, whatever their classes."""

import contextlib
import inspect
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any
from weakref import WeakSet

from lightning.pytorch.loggers import Logger, WandbLogger

from chargpt.errors import TrainingError, describe_error

log = logging.getLogger(__name__)

_failed: WeakSet[Logger] = WeakSet()  # the loggers for which a warning has been shown


def log_metrics(loggers: Sequence[Logger], point: Mapping[str, float], step: int) -> None:
    """Logs a point. A logger that fails does not stop the run, and is tried again with the next point."""
    for logger in loggers:
        _attempt(logger, lambda logger: logger.log_metrics(dict(point), step=step))


def log_text(loggers: Sequence[Logger], name: str, text: str, step: int) -> None:
    """Logs text to each logger that `takes_text`. A logger that fails does not stop the run."""
    for logger in filter(takes_text, loggers):
        _attempt(logger, lambda logger: _log_text(logger, name, text, step))


def save(loggers: Sequence[Logger]) -> None:
    """Writes what the loggers have buffered. A logger that fails does not stop the run."""
    for logger in loggers:
        _attempt(logger, lambda logger: logger.save())


def log_hyperparams(logger: Logger, params: dict[str, Any]) -> None:
    """Logs the hyperparameters.

    Raises:
        TrainingError: the logger cannot be used, for example because there is no login to its service.
    """
    try:
        logger.log_hyperparams(params)
    except Exception as error:  # a third party's class may raise any exception
        raise TrainingError(f"{type(logger).__name__} cannot be used: {describe_error(error)}") from error


@contextlib.contextmanager
def finishing(loggers: Sequence[Logger]) -> Iterator[None]:
    """Ends the W&B run of this process at the end: otherwise the next run in this process would log to it."""
    exit_code = 1
    try:
        yield
        exit_code = 0
    finally:
        if any(isinstance(logger, WandbLogger) for logger in loggers):
            wandb: Any = sys.modules.get("wandb")  # an extra, which the logger has imported on rank 0
            if wandb is not None and wandb.run is not None:
                wandb.finish(exit_code)


def run_id_parameter(logger_class: Any) -> str | None:
    """The constructor's parameter for the run to continue, of `WandbLogger` and `MLFlowLogger`; None without one."""
    parameters = inspect.signature(logger_class).parameters
    return next((name for name in ("id", "run_id") if name in parameters), None)


def takes_text(logger: Logger) -> bool:
    """Whether the logger has a method `log_text` that takes a text or a table."""
    parameters = _parameters_of_log_text(logger)
    return {"text", "step"} <= parameters or {"columns", "data", "step"} <= parameters


def _log_text(logger: Any, name: str, text: str, step: int) -> None:
    if "text" in _parameters_of_log_text(logger):
        logger.log_text(name, text=text, step=step)
    else:  # Weights & Biases
        logger.log_text(name, columns=["step", "text"], data=[[step, text]], step=step)


def _parameters_of_log_text(logger: Logger) -> set[str]:
    method = getattr(logger, "log_text", None)
    return set(inspect.signature(method).parameters) if callable(method) else set()


def _attempt(logger: Logger, call: Callable[[Logger], None]) -> None:
    try:
        call(logger)
    except Exception as error:  # a third party's class may raise any exception
        if logger not in _failed:
            _failed.add(logger)
            log.warning(
                "%s failed, so it misses points, which history.csv contains: %s",
                type(logger).__name__,
                describe_error(error),
                exc_info=os.environ.get("HYDRA_FULL_ERROR") == "1",
            )
