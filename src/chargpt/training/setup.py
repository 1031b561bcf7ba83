"""Builds and validates the components of a run: data, module, callbacks and loggers."""

import functools
import inspect
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import lightning as L
import torch
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from torch import nn

from chargpt.config.instantiate import instantiate
from chargpt.config.trust import COMPOSED, Trust, locate
from chargpt.data.datamodule import TextDataModule
from chargpt.data.tokenizer import Tokenizer
from chargpt.distributed import env
from chargpt.errors import UserError
from chargpt.model.language_model import LanguageModel
from chargpt.runs import retention
from chargpt.runs.directory import RunDirectory
from chargpt.training.callbacks.checkpoint import CheckpointCallback
from chargpt.training.callbacks.divergence import DivergenceRollback
from chargpt.training.callbacks.metrics import SCORE, MetricsCallback
from chargpt.training.callbacks.timer import TrainingTimer
from chargpt.training.checks import check_schedule, check_tokenizer
from chargpt.training.lightning_module import LanguageModeling
from chargpt.training.loggers import dispatch
from chargpt.utils import threads

log = logging.getLogger(__name__)


@dataclass
class Origin:
    """What a run starts from.

    Attributes:
        resumed: whether the run resumes in an existing directory.
        checkpoint_path, checkpoint: the file from which it resumes, and its content; None if there is none.
        original: the run that this one repeats, for `rerun=`.
        threads: the number of threads of torch in the run that is resumed or repeated; None if it is unknown.
        cpu_dtypes: those of that run, as `cpu_precision.as_plain` describes them; None if it has none.
    """

    resumed: bool = False
    checkpoint_path: Path | None = None
    checkpoint: dict[str, Any] | None = None
    original: RunDirectory | None = None
    threads: int | None = None
    cpu_dtypes: Any = None

    @property
    def step(self) -> int:
        return self.checkpoint["global_step"] if self.checkpoint else 0

    @property
    def validation_due(self) -> bool:
        """Whether the run starts with the validation of the checkpoint's step."""
        return self.checkpoint is not None and CheckpointCallback.is_validation_due(self.checkpoint)

    @property
    def logged_step(self) -> int:
        """The last step whose points in the logs are complete."""
        return self.step - 1 if self.validation_due else self.step


@dataclass
class Run:
    """The components of a run, built and validated before anything is written to disk."""

    config: dict[str, Any]
    directory: RunDirectory
    origin: Origin
    data: TextDataModule
    module: LanguageModeling
    trainer: L.Trainer
    timer: TrainingTimer
    metrics_callback: MetricsCallback
    rollbacks: DivergenceRollback
    trust: Trust  # for the files that this run has written
    keep: str = retention.ALL  # which checkpoints remain when the run has finished

    @property
    def model(self) -> LanguageModel:
        return self.module.model


def set_threads(setting: int | str, origin: Origin) -> None:
    """Sets the number of threads of torch. With another number, the last bits of the results differ.

    It is, in this order: the setting; that of the environment variable OMP_NUM_THREADS; that of the run that is resumed
    or repeated; the number of idle processors.

    Args:
        setting: `trainer.threads`.

    Raises:
        UserError: the setting is invalid.
    """
    saved, default = origin.threads, torch.get_num_threads()
    if setting != "auto":
        if not (isinstance(setting, int) and setting > 0):
            raise UserError(f"trainer.threads={setting}: it must be auto, or a number of threads")
        torch.set_num_threads(setting)
    elif "OMP_NUM_THREADS" not in os.environ:
        if saved:
            number = min(saved, os.cpu_count() or 1)
        elif env.THREADS_ENV in os.environ:  # chosen by the parent process for all ranks
            number = int(os.environ[env.THREADS_ENV])
        elif env.launched_by_srun():  # the same on all ranks
            number = threads.choose(threads.available_processors(), default)
        else:
            number = threads.choose(threads.measurement.measure(), default)
        torch.set_num_threads(number)
    if saved and saved != torch.get_num_threads():
        log.info("%d threads instead of %d: results are not bit-identical", torch.get_num_threads(), saved)


def load_data(
    settings: dict[str, Any], directory: RunDirectory, checkpoint: dict[str, Any] | None, trust: Trust
) -> TextDataModule:
    """Reads the corpus; with a checkpoint, encodes it by the tokenizer in the checkpoint.

    Args:
        settings: the config's `data`.

    Raises:
        UserError: the corpus cannot be read, or the run was trained on a different one.
    """
    data = instantiate(settings, "data", TextDataModule, trust)
    if not checkpoint:
        data.read()
        assert data.tokenizer is not None
        check_tokenizer(data.tokenizer)
        return data
    data.read(instantiate(checkpoint["chargpt"]["tokenizer"], "tokenizer", Tokenizer, trust))
    saved = checkpoint["chargpt"]["corpus_sha256"]
    if saved != data.corpus_sha256:
        raise UserError(
            f"{directory.path} was trained on another text: corpus sha256 {saved[:12]}..., now "
            f"{data.corpus_sha256[:12]}..."
        )
    return data


def make_module(model: LanguageModel, optimizer: Any, schedule: Any, seed: int, trust: Trust) -> LanguageModeling:
    """Builds the LightningModule of a model, with its optimizer and schedule.

    Args:
        optimizer, schedule: the sub-configs of these names.

    Raises:
        UserError: one of them builds an object of the wrong type.
    """
    factor: Any = instantiate(schedule, "schedule", trust=trust)
    check_schedule(factor)
    try:
        module = LanguageModeling(model, _optimizer_factory(optimizer, trust), factor, seed)
    except UserError as error:
        if "is not iterable" not in str(error):
            raise
        raise UserError(f"{error}; a function receives the model, a class of torch.optim its parameters") from error
    if not isinstance(module.optimizer, torch.optim.Optimizer):
        name = type(module.optimizer).__name__
        raise UserError(f"optimizer: it must return a torch.optim.Optimizer, not a {name}")
    return module


def _optimizer_factory(config: Any, trust: Trust) -> Callable[[nn.Module], torch.optim.Optimizer]:
    """A function that builds the optimizer of a model.

    The target is a function of (model, ...), or a subclass of `torch.optim.Optimizer`, which gets the parameters.
    """
    make: Any = instantiate({**config, "_partial_": True}, "optimizer", trust=trust)
    if inspect.isclass(make.func) and issubclass(make.func, torch.optim.Optimizer):
        return lambda model: make([p for p in model.parameters() if p.requires_grad])
    return make


def make_callbacks(
    configs: dict[str, Any] | None, metrics_callback: MetricsCallback, timer: TrainingTimer
) -> list[L.Callback]:
    """Builds the callbacks of the config: of this package, of Lightning or of the user.

    Required constructor parameters `metrics_callback` and `timer` that the config does not set receive the objects of
    the run. A required parameter `monitor`, as in Lightning's `EarlyStopping`, is set to `score`, the name under which
    `MetricsCallback` logs the run's monitored metric; then `mode` is set to the run's mode.

    Raises:
        UserError: a callback cannot be instantiated, or is not a Lightning callback.
    """
    monitor = {"monitor": SCORE, "mode": metrics_callback.monitor.mode}

    def arguments(target: Any, config: Mapping[str, Any]) -> dict[str, Any]:
        unset = _unset_parameters(target, config)
        required = {name for name, parameter in unset.items() if parameter.default is parameter.empty}
        injected = {
            name: value
            for name, value in {"metrics_callback": metrics_callback, "timer": timer}.items()
            if name in required
        }
        if "monitor" in required:
            injected |= {name: value for name, value in monitor.items() if name in unset}
        return injected

    return [
        _make(config, f"callbacks.{name}", L.Callback, arguments) for name, config in (configs or {}).items() if config
    ]


def make_loggers(
    configs: dict[str, Any] | None, step: int | None, runs: Mapping[str, str] = MappingProxyType({})
) -> list[Logger]:
    """Builds the loggers of the config: of this package, of Lightning or of the user.

    Args:
        step: `Origin.logged_step` of a run that resumes; TensorBoard hides points that an interrupted run logged after
            it.
        runs: the identifiers of this run at services that continue it, by the name of the logger.

    Raises:
        UserError: a logger cannot be instantiated, or is not a Lightning logger.
    """

    def arguments(name: str, target: Any, config: Mapping[str, Any]) -> dict[str, Any]:
        if step is None or not inspect.isclass(target):
            return {}
        resumed: dict[str, Any] = {"purge_step": step + 1} if issubclass(target, TensorBoardLogger) else {}
        if name in runs and (parameter := dispatch.run_id_parameter(target)):
            resumed[parameter] = runs[name]
        return {key: value for key, value in resumed.items() if key not in config}

    return [
        _make(config, f"logger.{name}", Logger, functools.partial(arguments, name))
        for name, config in (configs or {}).items()
        if config
    ]


def _unset_parameters(target: Any, config: Mapping[str, Any]) -> dict[str, inspect.Parameter]:
    """The parameters that can be passed by keyword and that the config does not set."""
    try:
        signature = inspect.signature(target)
        positional = signature.bind_partial(*config.get("_args_", [])).arguments
    except (TypeError, ValueError):  # no signature, or too many arguments, which the call itself reports
        return {}
    by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {
        name: parameter
        for name, parameter in signature.parameters.items()
        if parameter.kind in by_name and name not in positional and name not in config
    }


def _make(config: Mapping[str, Any], path: str, kind: type, arguments: Any) -> Any:
    try:
        target = locate(config.get("_target_"), path, COMPOSED)
        return instantiate(config, path, kind, COMPOSED, **arguments(target, config))
    except Exception as error:  # a third-party class may raise any exception
        reason = (str(error).removeprefix(f"{path}: ").splitlines() or [type(error).__name__])[0]
        raise UserError(f"{path} cannot be instantiated: {reason}") from error
