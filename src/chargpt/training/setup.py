"""The parts of a run, built from its config, each checked by itself."""

import difflib
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.strategies import FSDPStrategy

from chargpt.config.instantiate import instantiate, locate
from chargpt.data.datamodule import TextDataModule
from chargpt.data.tokenizer import Tokenizer
from chargpt.errors import UserError
from chargpt.model.language_model import LanguageModel
from chargpt.optim.lr_schedule import Constant
from chargpt.optim.matrix_optimizer import MatrixOptimizer
from chargpt.runs.directory import RunDirectory
from chargpt.runs.score import Monitor
from chargpt.training.callbacks.divergence import DivergenceRollback
from chargpt.training.callbacks.metrics import SCORE, VALIDATION_METRICS, MetricsCallback
from chargpt.training.callbacks.timer import TrainingTimer
from chargpt.training.lightning_module import LanguageModeling


@dataclass
class Origin:
    """What a run begins from.

    Attributes:
        resumed: whether it goes on in a directory of its own.
        checkpoint, progress: what it goes on from, and the content of it; None where it starts from nothing.
        repeated: the run that this one is to come out like, if it is a rerun.
    """

    resumed: bool = False
    checkpoint: Path | None = None
    progress: dict[str, Any] | None = None
    repeated: RunDirectory | None = None

    @property
    def step(self) -> int:
        return self.progress["global_step"] if self.progress else 0


@dataclass
class Run:
    """All that a run needs, built and checked, before anything of it is on disk."""

    config: dict[str, Any]
    directory: RunDirectory
    origin: Origin
    data: TextDataModule
    module: LanguageModeling
    trainer: L.Trainer
    timer: TrainingTimer
    metrics_callback: MetricsCallback
    rollbacks: DivergenceRollback

    @property
    def model(self) -> LanguageModel:
        return self.module.model


def read_text(settings: dict[str, Any], directory: RunDirectory, progress: dict[str, Any] | None) -> TextDataModule:
    """The text, in the vocabulary of the run that goes on.

    Args:
        settings: the config's `data`.

    Raises:
        UserError: it cannot be read, or is not the one that the run was trained on.
    """
    data = instantiate(settings, "data", TextDataModule)
    if not progress:
        data.read()
        return data
    data.read(instantiate(progress["chargpt"]["tokenizer"], "tokenizer", Tokenizer))
    before = progress["chargpt"]["corpus_sha256"]
    if before != data.corpus_sha256:
        raise UserError(
            f"{directory.path} was trained on another text: corpus sha256 {before[:12]}..., now "
            f"{data.corpus_sha256[:12]}..."
        )
    return data


def check_model(model: LanguageModel, data: TextDataModule) -> None:
    """Raises `UserError` for a model that does not work, or takes shorter blocks than the data's."""
    if data.block_size > model.block_size:
        raise UserError(
            f"data.block_size={data.block_size} is more than the model takes: leave it out, and set "
            f"model.block_size={data.block_size}"
        )
    try:
        model.smoke_test()
    except ValueError as error:
        raise UserError(f"model: {error}") from error


def make_module(model: LanguageModel, optimizer: Any, schedule: Any, seed: int) -> LanguageModeling:
    """The training step of a model, with its optimizer and schedule.

    Args:
        optimizer, schedule: these parts of the config.

    Raises:
        UserError: one of them is something else.
    """
    make_optimizer = instantiate(optimizer, "optimizer")
    if not callable(make_optimizer):
        raise UserError(f"optimizer is a {type(make_optimizer).__name__}, and must be a part: optimizer=adamw")
    module = LanguageModeling(model, make_optimizer, instantiate(schedule, "schedule", Constant), seed)
    if not isinstance(module.optimizer, torch.optim.Optimizer):
        raise UserError(f"optimizer makes a {type(module.optimizer).__name__}, and must make a torch.optim.Optimizer")
    return module


def check_strategy(module: LanguageModeling, trainer: L.Trainer) -> None:
    """Raises `UserError` if the optimizer cannot work with what the strategy leaves of each parameter."""
    if isinstance(trainer.strategy, FSDPStrategy) and isinstance(module.optimizer, MatrixOptimizer):
        raise UserError(
            "optimizer: this one needs whole matrices, and FSDP splits them: take trainer=ddp, or optimizer=adamw"
        )


def check_batch(batch_size: int, model: LanguageModel, devices: int) -> None:
    """Raises `UserError` if the sequences of a batch cannot be shared out equally."""
    if batch_size % devices:
        raise UserError(
            f"data.batch_size={batch_size} cannot be shared equally by {devices} devices: make it a multiple of "
            f"{devices}"
        )
    if batch_size % (multiple := model.batch_multiple * devices):
        raise UserError(
            f"data.batch_size={batch_size}: each of the model's {model.batch_multiple} members wants an equal "
            f"share on each device: make it a multiple of {multiple}"
        )


def check_monitor(monitor: Monitor, callbacks: dict[str, Any] | None) -> None:
    """Raises `UserError` for a figure that no validation will measure. Only a callback of the user's can add one."""
    ours = ("chargpt.", "lightning.")
    own = any(not str(config.get("_target_")).startswith(ours) for config in (callbacks or {}).values() if config)
    if monitor.name in VALIDATION_METRICS or (own and "/" not in monitor.name):
        return
    near = difflib.get_close_matches(monitor.name.replace("/", "_"), VALIDATION_METRICS, n=1)
    hint = f"; did you mean {near[0]}?" if near else "."
    raise UserError(
        f"monitor={monitor.name}: a validation does not measure it{hint} It measures {', '.join(VALIDATION_METRICS)}"
    )


def make_callbacks(
    configs: dict[str, Any] | None, metrics_callback: MetricsCallback, timer: TrainingTimer
) -> list[L.Callback]:
    """The callbacks of the config: ours, Lightning's or the user's.

    Constructor parameters named `metrics_callback` or `timer` that have no default and are not in the config receive
    those of the run. So is `monitor`, and `mode` with it, for Lightning's `EarlyStopping` and the like:
    the curves log the run's score as `score`.

    Raises:
        UserError: one cannot be made, or is no callback.
    """
    monitor = {"monitor": SCORE, "mode": metrics_callback.monitor.mode}

    def arguments(target: Any, config: Mapping[str, Any]) -> dict[str, Any]:
        free = _free_parameters(target, config)
        required = {name for name, parameter in free.items() if parameter.default is parameter.empty}
        given = {
            name: value
            for name, value in {"metrics_callback": metrics_callback, "timer": timer}.items()
            if name in required
        }
        if "monitor" in required:
            given |= {name: value for name, value in monitor.items() if name in free}
        return given

    return [
        _make(config, f"callbacks.{name}", L.Callback, arguments) for name, config in (configs or {}).items() if config
    ]


def make_loggers(configs: dict[str, Any] | None, step: int | None) -> list[Logger]:
    """The loggers of the config: ours, Lightning's or the user's.

    Args:
        step: of the checkpoint that a resumed run starts from; TensorBoard hides earlier points after it.

    Raises:
        UserError: one cannot be made, or is no logger.
    """

    def arguments(target: Any, config: Mapping[str, Any]) -> dict[str, Any]:
        is_board = inspect.isclass(target) and issubclass(target, TensorBoardLogger)
        return {"purge_step": step + 1} if is_board and step is not None and "purge_step" not in config else {}

    return [_make(config, f"logger.{name}", Logger, arguments) for name, config in (configs or {}).items() if config]


def _free_parameters(target: Any, config: Mapping[str, Any]) -> dict[str, inspect.Parameter]:
    """The parameters that may be given by name, and that the config leaves out."""
    try:
        signature = inspect.signature(target)
        taken = signature.bind_partial(*config.get("_args_", [])).arguments
    except (TypeError, ValueError):  # no signature, or too many arguments, which the call itself will say
        return {}
    by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {
        name: parameter
        for name, parameter in signature.parameters.items()
        if parameter.kind in by_name and name not in taken and name not in config
    }


def _make(config: Mapping[str, Any], path: str, kind: type, arguments: Any) -> Any:
    try:
        target = locate(config.get("_target_"), path, trusted=True)
        return instantiate(config, path, kind, trusted=True, **arguments(target, config))
    except Exception as error:  # a class of anybody's may raise anything
        hint = ": pip install wandb" if "wandb" in str(error) else ""
        reason = (str(error).removeprefix(f"{path}: ").splitlines() or [type(error).__name__])[0]
        raise UserError(f"{path} cannot be made: {reason}{hint}") from error
