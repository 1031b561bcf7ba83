"""What a run writes down about itself when it begins: its config, provenance, log and status."""

import logging
import logging.handlers
import os
from typing import Any

import lightning as L
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from chargpt import rank
from chargpt.data.datamodule import TextDataModule
from chargpt.errors import Mistake
from chargpt.training import report, rerun
from chargpt.training.checkpoint import Checkpoints
from chargpt.training.curves import Curves
from chargpt.training.hardware import device_name
from chargpt.training.module import LanguageModeling
from chargpt.training.parts import Origin
from chargpt.training.run_directory import RunDirectory, provenance, write_hydra, write_json
from chargpt.training.tensorboard import TensorBoard


class Record(L.Callback):
    """Opens the run's directory when training starts.

    By then Lightning has loaded the checkpoint: where a run cannot be resumed, its directory stays as it was.

    Args:
        directory: of the run; it exists.
        config: what the run is made of.
        origin: what it begins from.
        data, curves: its own.
        messages: what was logged so far; it goes to `train.log`, as does all that comes.
    """

    def __init__(
        self,
        directory: RunDirectory,
        config: dict[str, Any],
        origin: Origin,
        data: TextDataModule,
        curves: Curves,
        messages: logging.handlers.MemoryHandler,
    ):
        self._directory, self._config, self._origin = directory, config, origin
        self._data, self._curves, self._messages = data, curves, messages
        self._log: logging.FileHandler | None = None

    @property
    def is_open(self) -> bool:
        return self._log is not None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        try:
            self.open(trainer, pl_module)
        except OSError as error:
            raise Mistake(f"{self._directory.path} cannot be written: {error.strerror}") from error

    def open(self, trainer: L.Trainer, module: LanguageModeling) -> None:
        """Writes the record of a run that begins or goes on; on rank 0, and once."""
        if self.is_open or not trainer.is_global_zero:
            return
        directory, origin, step = self._directory, self._origin, self._origin.step
        if rank.OURS not in os.environ:  # else the process that started the ranks has done it
            directory.tidy()
        self._log = logging.FileHandler(directory.log, encoding="utf-8", errors="backslashreplace")
        self._log.setFormatter(logging.Formatter("[%(asctime)s][%(name)s][%(levelname)s] %(message)s"))
        logging.getLogger().addHandler(self._log)
        self._messages.setTarget(self._log)
        self._messages.flush()
        logging.getLogger().removeHandler(self._messages)
        if origin.repeated:
            rerun.copy_record(origin.repeated, directory)
        config = OmegaConf.create(self._config)
        write_hydra(directory.hydra, config, HydraConfig.get())
        data, device = self._data, device_name(trainer.strategy.root_device)
        threads = torch.get_num_threads()
        record = provenance(data.corpus.name, data.corpus_sha256, device, trainer.world_size, threads)
        write_json(directory.path / "provenance.json", record)
        # Cut off before the best was told from the last, or the best is lost.
        if origin.progress and step in (Curves.best_step_in(origin.progress), self._curves.best_from):
            Checkpoints.copy(origin.checkpoint, directory.best)
        if origin.resumed:
            self._curves.rewind(step)
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoard):
                logger.begin()
                if origin.resumed:
                    logger.mark_restart(step + 1)
                logger.start_hparams(report.hyperparameters(self._config, module))
                logger.log_text("config", OmegaConf.to_yaml(config), step)
        if directory.metrics.exists():
            directory.metrics.replace(directory.metrics_before)
        directory.write_status("running", step)

    def close(self) -> None:
        """Ends `train.log`."""
        logging.getLogger().removeHandler(self._messages)
        if self._log is not None:
            logging.getLogger().removeHandler(self._log)
            self._log.close()
