"""Checks of the components of a run, before anything is written."""

import difflib
import logging
import math
import numbers
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import DeviceStatsMonitor, LearningRateMonitor, StochasticWeightAveraging
from lightning.pytorch.strategies import FSDPStrategy

from chargpt.checkpoint.plain_data import find_non_plain
from chargpt.config.instantiate import instantiate
from chargpt.config.trust import COMPOSED
from chargpt.data.datamodule import TextDataModule
from chargpt.data.tokenizer import Tokenizer
from chargpt.errors import UserError, describe_error
from chargpt.model.adapters import ModuleAdapter
from chargpt.model.language_model import LanguageModel
from chargpt.optim.matrix_optimizer import MatrixOptimizer
from chargpt.runs.score import Monitor
from chargpt.training.callbacks.metrics import LOGGED_METRICS, SCORE, VALIDATION_METRICS
from chargpt.training.lightning_module import LanguageModeling
from chargpt.utils.paths import is_folder_name

log = logging.getLogger(__name__)


def check_config(saved: dict[str, Any]) -> None:
    """Raises `UserError` if the name is a path, or a checkpoint cannot contain the config: plain data without `${`."""
    if not is_folder_name(str(saved["name"])):
        raise UserError(f"name={str(saved['name'])!r}: it must be the name of a directory in outputs/, not a path")
    if problem := find_non_plain(saved, ""):
        raise UserError(f"{problem.removeprefix('.')}, so that no checkpoint can contain it; choose another")


def check_tokenizer(tokenizer: Tokenizer) -> None:
    """Raises `UserError` if the tokenizer cannot be built again from its `as_config()`, or cannot decode."""
    name = type(tokenizer).__name__
    try:
        config = tokenizer.as_config()
        restored = instantiate(config, "tokenizer", Tokenizer, COMPOSED)
        text = restored.decode(torch.zeros(1, dtype=torch.long))
    except Exception as error:  # the user's code may raise anything
        reason = describe_error(error)
        raise UserError(f"data.tokenizer: {name} cannot be built again from its as_config() ({reason})") from error
    if restored.vocab_size != tokenizer.vocab_size or not isinstance(text, str):
        raise UserError(
            f"data.tokenizer: what {name}.as_config() builds has another vocab_size, or its decode returns no text"
        )
    if problem := find_non_plain(config, "tokenizer"):
        raise UserError(f"data.tokenizer: {name}: {problem}, which a checkpoint cannot contain")


def check_model(model: LanguageModel, data: TextDataModule) -> None:
    """Raises `UserError` if the model fails its smoke test, or if the data's blocks are longer than its block size."""
    if data.block_size > model.block_size:
        raise UserError(
            f"data.block_size={data.block_size}: more than model.block_size={model.block_size}; set only "
            f"model.block_size={data.block_size}"
        )
    try:
        model.smoke_test()
    except ValueError as error:
        raise UserError(f"model: {error}") from error
    if isinstance(model, ModuleAdapter):
        _check_module(model)


def _check_module(model: ModuleAdapter) -> None:
    name, trainable = type(model.module).__name__, sum(p.requires_grad for p in model.parameters())
    unused = model.unused_parameters()
    if len(unused) == trainable:
        raise UserError(f"model: the logits of {name} depend on none of its {trainable} trainable parameters")
    if unused:
        log.warning("model: the logits of %s do not depend on %s", name, ", ".join(unused).replace("module.", ""))
    if not model.is_causal():
        log.warning(
            "model: the logits of %s depend on later tokens, which include the target: the loss is meaningless", name
        )


def check_schedule(schedule: Any) -> None:
    """Raises `UserError` if a schedule is not a function of (step, max_steps, time) that returns a number."""
    function = getattr(schedule, "func", schedule)
    name = getattr(function, "__name__", type(function).__name__)
    if not callable(schedule):
        raise UserError(f"schedule: {name} is not a function of (step, max_steps, time); is _partial_: true missing?")
    try:
        factor = schedule(0, 1, 0.0)
    except UserError:
        raise
    except Exception as error:  # the user's code may raise anything
        reason = describe_error(error)
        raise UserError(f"schedule: {name} is not a function of (step, max_steps, time) ({reason})") from error
    if not isinstance(factor, numbers.Real):
        raise UserError(f"schedule: {name} returns a {type(factor).__name__}, not a factor of the learning rate")
    if not math.isfinite(factor):
        raise UserError(f"schedule: {name} returns {factor} at step 0")


def check_strategy(module: LanguageModeling, trainer: L.Trainer, strategy: str) -> None:
    """Checks that the optimizer and the model can be used with the strategy.

    Args:
        strategy: its name in the config.

    Raises:
        UserError: the optimizer requires complete matrices, which FSDP shards; or a parameter gets no gradient, for
            which DDP waits, unless the name of the strategy says otherwise.
    """
    if isinstance(trainer.strategy, FSDPStrategy) and isinstance(module.optimizer, MatrixOptimizer):
        raise UserError(
            "optimizer: it requires complete matrices, but FSDP shards them: use trainer=ddp, or optimizer=adamw"
        )
    model = module.model
    is_ddp = trainer.world_size > 1 and strategy in ("auto", "ddp")
    if is_ddp and isinstance(model, ModuleAdapter) and (unused := model.unused_parameters()):
        raise UserError(
            f"model: the logits do not depend on {unused[0].removeprefix('module.')}: for several processes remove it, "
            f"set its requires_grad to False, or use trainer.strategy=ddp_find_unused_parameters_true"
        )


def check_batch(batch_size: int, model: LanguageModel, devices: int) -> None:
    """Raises `UserError` if the batch size is not divisible by the number of devices and ensemble members."""
    if batch_size % devices:
        raise UserError(
            f"data.batch_size={batch_size}: not divisible by the number of devices; use a multiple of {devices}"
        )
    if batch_size % (multiple := model.batch_multiple * devices):
        raise UserError(
            f"data.batch_size={batch_size}: not divisible by {model.batch_multiple} ensemble members on each of "
            f"{devices} devices; use a multiple of {multiple}"
        )


def check_monitor(monitor: Monitor, callbacks: dict[str, Any] | None) -> None:
    """Raises `UserError` if the monitor is not a validation metric and no callback of the user could log it."""
    if monitor.name in VALIDATION_METRICS or (_has_own(callbacks) and "/" not in monitor.name):
        return
    matches = difflib.get_close_matches(monitor.name.replace("/", "_"), VALIDATION_METRICS, n=1)
    hint = f"; did you mean {matches[0]}?" if matches else "."
    raise UserError(
        f"monitor={monitor.name}: not a validation metric{hint} Choose from {', '.join(VALIDATION_METRICS)}"
    )


def _has_own(callbacks: dict[str, Any] | None) -> bool:
    """Whether a callback is the user's."""
    targets = [str(config.get("_target_")) for config in (callbacks or {}).values() if config]
    return any(not target.startswith(("chargpt.", "lightning.")) for target in targets)


def check_callbacks(trainer: L.Trainer, configs: dict[str, Any] | None) -> None:
    """Raises `UserError` if a callback monitors a metric that is not logged, requires a logger and there is none, or
    would have no effect.

    Args:
        configs: those of the callbacks.
    """
    logged = (SCORE, *LOGGED_METRICS)
    callbacks: list[L.Callback] = trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue] - not declared
    for callback in callbacks:
        name = getattr(callback, "monitor", None)
        if isinstance(name, str) and name not in logged and not _has_own(configs):
            matches = difflib.get_close_matches(name.replace("_", "/"), logged, n=1)
            hint = f"; did you mean {matches[0]}?" if matches else "."
            raise UserError(
                f"callbacks: {type(callback).__name__} monitors {name}, which is not logged{hint} Choose from "
                f"{', '.join(logged)}"
            )
        if isinstance(callback, StochasticWeightAveraging):
            raise UserError(
                "callbacks: StochasticWeightAveraging averages once per epoch and replaces the weights after the last "
                "checkpoint, so that no saved model has them. To average after each step, use trainer.ema_decay=0.99"
            )
        if isinstance(callback, LearningRateMonitor | DeviceStatsMonitor) and not trainer.loggers:
            raise UserError(
                f"callbacks: {type(callback).__name__} requires a logger: add one, for example logger=csv, or remove "
                f"this callback"
            )
