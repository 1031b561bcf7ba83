"""A run directory is opened; and put back as it was, where the run cannot go on after all."""

import contextlib
import logging
import logging.handlers
import os
from collections.abc import Iterator
from pathlib import Path

import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from chargpt import rank
from chargpt.errors import Mistake
from chargpt.training import report, rerun
from chargpt.training.checkpoint import Checkpoints
from chargpt.training.curves import Curves
from chargpt.training.hardware import device_name
from chargpt.training.history import History
from chargpt.training.prepare import Run
from chargpt.training.run_directory import provenance, write_hydra, write_json
from chargpt.training.tensorboard import TensorBoard
from chargpt.whole import whole


@contextlib.contextmanager
def open_directory(run: Run, composed: DictConfig, said: logging.handlers.MemoryHandler) -> Iterator[None]:
    """Opens the run directory, which exists, and writes down what is about to run, and then what is said."""
    hydra_config = HydraConfig.get()
    directory = run.directory
    if rank.OURS not in os.environ:  # else whoever started the ranks has done it
        directory.tidy()
    file = logging.FileHandler(directory.path / "train.log", encoding="utf-8", errors="backslashreplace")
    file.setFormatter(logging.Formatter("[%(asctime)s][%(name)s][%(levelname)s] %(message)s"))
    logging.getLogger().addHandler(file)
    said.setTarget(file)
    said.flush()
    config = OmegaConf.create({**OmegaConf.to_container(composed, resolve=True), **run.config})
    if run.repeated:
        rerun.copy_record(run.repeated, directory)
    write_hydra(directory.path / ".hydra", config, hydra_config)
    device = device_name(run.trainer.strategy.root_device)
    record = provenance(
        run.data.corpus.name, run.data.corpus_sha256, device, run.trainer.world_size, torch.get_num_threads()
    )
    write_json(directory.path / "provenance.json", record)
    step = 0
    if run.progress is not None:
        step = run.progress["global_step"]
        # Cut off before the best was told from the last, or the best is lost.
        if step in (Curves.best_step_in(run.progress), run.curves.best_from):
            Checkpoints.copy(run.checkpoint, directory.best)
    for logger in run.trainer.loggers:
        if run.resumed and isinstance(logger, History | TensorBoard):
            logger.rewind(step)
        if isinstance(logger, TensorBoard):
            logger.start_hparams(report.hyperparameters(run))
            logger.log_text("config", OmegaConf.to_yaml(config), step)
    if directory.metrics.exists():
        directory.metrics.replace(directory.metrics_before)
    directory.write_status("running", step)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(file)
        file.close()


@contextlib.contextmanager
def as_before(run: Run) -> Iterator[None]:
    """Puts the run's directory back as it was if a `Mistake` comes before the first step.

    Of the checkpoints only `best.ckpt` may be another by then.
    """
    folder, best = run.directory.path, run.directory.best
    kept = best.with_name(f".{best.name}.before")  # `tidy` lets it be
    contents = {path: path.read_bytes() for path in _files(folder) if not _only_grows(path)}
    lengths = {path: path.stat().st_size for path in _files(folder) if _only_grows(path)}
    if best.exists():
        Checkpoints.copy(best, kept)
    try:
        yield
    except Mistake:
        if run.module.steps_here == 0:
            for logger in run.trainer.loggers:
                if isinstance(logger, TensorBoard):
                    logger.experiment.close()
            _put_back(folder, contents, lengths)
            if kept.exists():
                kept.replace(best)
        raise
    finally:
        kept.unlink(missing_ok=True)


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and path.parent.name != "checkpoints"]


def _only_grows(path: Path) -> bool:
    return path.suffix == ".log" or path.name.startswith("events.")


def _put_back(folder: Path, contents: dict[Path, bytes], lengths: dict[Path, int]) -> None:
    for path in _files(folder):
        if path in lengths:
            os.truncate(path, lengths[path])
        elif path not in contents:
            path.unlink()
    for path, content in contents.items():
        if not path.exists() or path.read_bytes() != content:
            with whole(path) as file:
                file.write(content)
