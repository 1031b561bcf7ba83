"""Writes the config, provenance, log and status of a run when it starts."""

import contextlib
import logging
import logging.handlers
import os
from typing import Any, cast

import lightning as L
import torch
from hydra.core.hydra_config import HydraConfig
from lightning.pytorch.loggers import CSVLogger, MLFlowLogger
from omegaconf import DictConfig, OmegaConf

from chargpt.data.datamodule import TextDataModule
from chargpt.distributed import env
from chargpt.errors import UserError
from chargpt.model.kernels.cpu_dtypes import get_cpu_dtypes
from chargpt.runs import reproduce
from chargpt.runs.directory import RunDirectory, provenance, write_hydra, write_json
from chargpt.training import report
from chargpt.training.callbacks.checkpoint import CheckpointCallback
from chargpt.training.callbacks.metrics import MetricsCallback
from chargpt.training.cpu_precision import as_plain
from chargpt.training.lightning_module import LanguageModeling
from chargpt.training.loggers import dispatch
from chargpt.training.loggers.csv_history import rewind_earlier_versions
from chargpt.training.loggers.tensorboard import TensorBoard
from chargpt.training.setup import Origin
from chargpt.training.trainer import device_name


class RunRecorder(L.Callback):
    """Opens the run directory for writing: at the start of a new run, after the first step of a resumed one.

    After the first step, the checkpoint has been loaded and used, so the directory of a run that cannot be resumed
    remains unchanged.

    Attributes:
        is_open: whether the directory has been opened.

    Args:
        directory: the run directory, which exists.
        config: the config of the run.
        origin: what the run starts from.
        data, metrics_callback: those of the run.
        messages: the log records so far, which are written to `train.log` before later ones.
    """

    def __init__(
        self,
        directory: RunDirectory,
        config: dict[str, Any],
        origin: Origin,
        data: TextDataModule,
        metrics_callback: MetricsCallback,
        messages: logging.handlers.MemoryHandler,
    ):
        self._directory, self._config, self._origin = directory, config, origin
        self._data, self._metrics_callback, self._messages = data, metrics_callback, messages
        self._log: _LogFile | None = None
        self._step = 0  # the step from which training started
        self.is_open = False

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._step = trainer.global_step

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not self.is_open and trainer.global_step != self._step:
            self.open(trainer, pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.open(trainer, pl_module)  # if there was no step left to train

    def open(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Writes the files once, on rank 0. Called on all ranks.

        Raises:
            UserError: the directory cannot be written.
        """
        if trainer.is_global_zero and not self.is_open:
            try:
                self._open(trainer)
                self.is_open = True  # so that the failure of a logger is recorded
                self._open_loggers(trainer, module)
            except OSError as error:
                raise UserError(f"{self._directory.path} cannot be written: {error.strerror}") from error
        self.is_open = True

    def _open(self, trainer: L.Trainer) -> None:
        directory, origin, step = self._directory, self._origin, self._origin.step
        if env.LOCK_FD_ENV not in os.environ:  # otherwise `WorkerGroup` has removed them
            directory.remove_temporary_files()
        if origin.original:
            reproduce.copy_record(origin.original, directory)
        hydra = cast(DictConfig, HydraConfig.get())  # declared as its schema
        write_hydra(directory.hydra, self._saved_config(), hydra)
        data, device = self._data, device_name(trainer.strategy.root_device)
        threads = torch.get_num_threads()
        record = provenance(data.corpus.name, data.corpus_sha256, device, trainer.world_size, threads)
        if dtypes := as_plain(get_cpu_dtypes()):
            record["cpu_dtypes"] = dtypes
        write_json(directory.path / "provenance.json", record)
        self._open_log()
        # The run was interrupted before last.ckpt was copied to best.ckpt, or best.ckpt is damaged or missing.
        if origin.checkpoint and origin.checkpoint_path:
            recorded = MetricsCallback.best_step_in(origin.checkpoint)
            if step in (recorded, self._metrics_callback.best_from):
                CheckpointCallback.copy(origin.checkpoint_path, directory.best)
        if origin.resumed:
            self._metrics_callback.history.rewind(origin.logged_step)
        if directory.metrics.exists():
            directory.metrics.replace(directory.metrics_before)
        directory.write_status("running", step)

    def _saved_config(self) -> DictConfig:
        return OmegaConf.create({key: value for key, value in self._config.items() if key != "trust"})

    def _open_loggers(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        assert isinstance(module, LanguageModeling)  # Lightning declares its base class
        directory, origin, step = self._directory, self._origin, self._origin.step
        logs_hyperparams = self._config["trainer"].get("enable_autolog_hparams") is not False
        names = [name for name, settings in (self._config["logger"] or {}).items() if settings]
        continued = directory.read_logger_runs() if origin.resumed else {}
        runs = {}
        for name, logger in zip(names, trainer.loggers, strict=False):
            if isinstance(logger, TensorBoard):
                logger.open(first_step=origin.logged_step + 1 if origin.resumed else None)
            if isinstance(logger, CSVLogger) and origin.resumed:
                rewind_earlier_versions(logger, directory.path, origin.logged_step)
            # MLflow refuses to change hyperparameters, such as `max_steps` of a run that trains longer.
            if logs_hyperparams and not (name in continued and isinstance(logger, MLFlowLogger)):
                dispatch.log_hyperparams(logger, report.hyperparameters(self._config, module, directory.read_choices()))
            if dispatch.run_id_parameter(type(logger)):
                runs[name] = str(logger.version)
        if runs:
            write_json(directory.logger_runs, continued | runs)
        dispatch.log_text(trainer.loggers, "config", OmegaConf.to_yaml(self._saved_config()), step)
        if origin.validation_due:
            self._metrics_callback.log_again(trainer)

    def _open_log(self) -> None:
        self._log = _LogFile(self._directory.log, encoding="utf-8", errors="backslashreplace")
        self._log.setFormatter(logging.Formatter("[%(asctime)s][%(name)s][%(levelname)s] %(message)s"))
        logging.getLogger().addHandler(self._log)
        self._messages.setTarget(self._log)
        self._messages.flush()
        logging.getLogger().removeHandler(self._messages)

    def close(self) -> None:
        """Closes `train.log`."""
        logging.getLogger().removeHandler(self._messages)
        if self._log is not None:
            logging.getLogger().removeHandler(self._log)
            self._log.close()


class _LogFile(logging.FileHandler):
    """A log file that ignores a full disk, which the run itself reports."""

    def handleError(self, record: logging.LogRecord) -> None:
        pass

    def close(self) -> None:
        with contextlib.suppress(OSError):
            super().close()
