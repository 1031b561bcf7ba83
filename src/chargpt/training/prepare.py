"""All that a run needs, built and checked before anything of it is on disk."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from chargpt.config.build import SAVED
from chargpt.config.entry import chosen_place, place_run, task_words
from chargpt.data.datamodule import TextDataModule
from chargpt.errors import Mistake
from chargpt.model.language_model import LanguageModel
from chargpt.randomness import derive
from chargpt.sampling.trained import text_settings
from chargpt.training import out_of_memory, rerun
from chargpt.training.averaging import moving_average
from chargpt.training.checkpoint import Checkpoints, SealedCheckpointIO
from chargpt.training.clock import TrainingClock
from chargpt.training.compilation import Compilation
from chargpt.training.curves import Curves
from chargpt.training.divergence import Rollbacks
from chargpt.training.hardware import make_trainer
from chargpt.training.interruption import Interruption
from chargpt.training.module import LanguageModeling
from chargpt.training.parts import build_module, check_batch, check_strategy, instantiate, read_text
from chargpt.training.rank_error import RankError
from chargpt.training.resume import changed, tell_changes
from chargpt.training.run_directory import RunDirectory
from chargpt.training.saved_state import best_is_whole, check_state, find_state, state_of
from chargpt.training.seconds import seconds_of
from chargpt.typed_path import typed_path

log = logging.getLogger(__name__)


@dataclass
class Run:
    """All that a run needs, built and checked, before anything of it is on disk.

    Attributes:
        resumed: whether it goes on in a directory of its own.
        checkpoint, progress: what it goes on from, and the content of it; None where it starts from nothing.
        repeated: the run that this one is to come out like, if it is a rerun.
    """

    config: dict[str, Any]
    directory: RunDirectory
    resumed: bool
    checkpoint: Path | None
    progress: dict[str, Any] | None
    data: TextDataModule
    module: LanguageModeling
    trainer: L.Trainer
    clock: TrainingClock
    curves: Curves
    rollbacks: Rollbacks
    repeated: RunDirectory | None

    @property
    def model(self) -> LanguageModel:
        return self.module.model


def prepare(composed: DictConfig, diverged_at: Sequence[int] = ()) -> Run:
    """Builds every part, so that each mistake is told before a directory is made.

    Args:
        diverged_at: the steps at which this process has seen the run diverge, before it went back.
    """
    config = OmegaConf.to_container(composed, resolve=True)
    run_dir = HydraConfig.get().run.dir
    if config["resume"] != "never":
        directory, checkpoint, progress = find_state(typed_path("resume", config["resume"]))
        if chosen_place() and Path(run_dir).resolve() != directory.path.resolve():
            raise Mistake(f"resume={directory.path} goes on in that directory: leave hydra.run.dir out")
        place_run(directory.path)
        own = {k: OmegaConf.to_container(composed[k], resolve=True) for k in ("logger", "callbacks")}
        with state_of(checkpoint or directory.config):
            config |= _config_of(directory, progress, config) | own
            return _build(config, directory, diverged_at, checkpoint, progress)
    if repeated := rerun.original(config):
        with state_of(repeated.config):
            config |= _config_of(repeated, None, config)
            return _build(config, RunDirectory(run_dir), diverged_at, repeated=repeated)
    return _build(config, RunDirectory(run_dir), diverged_at)


def _build(
    config: dict[str, Any],
    directory: RunDirectory,
    diverged_at: Sequence[int],
    checkpoint: Path | None = None,
    progress: dict[str, Any] | None = None,
    repeated: RunDirectory | None = None,
) -> Run:
    if Path(str(config["name"])).name != str(config["name"]):
        raise Mistake(f"name={config['name']}: it is the name of a folder in outputs/, and no path")
    saved = {key: config[key] for key in SAVED}
    torch.manual_seed(derive(config["seed"]))
    data = read_text(config, directory, progress)
    if repeated:
        rerun.check_text(repeated, data.corpus_sha256)
    module = build_module(config, data)
    seconds = seconds_of(config["trainer"]["max_time"])
    clock = TrainingClock(seconds)
    rollbacks = Rollbacks(config["on_divergence"], diverged_at)
    module.time_used, module.lr_scale = clock.time_used, lambda: rollbacks.lr_scale
    compilation = Compilation(config["trainer"].get("compile", "auto"), seconds, clock)
    callbacks = [clock, *instantiate(config["callbacks"], "callbacks")]
    curves = next((c for c in callbacks if isinstance(c, Curves)), None)
    if curves is None:
        raise Mistake("callbacks.curves cannot be left out: history.csv and metrics.json come from it")
    if progress and not best_is_whole(directory, progress):
        curves.best_from = progress["global_step"]
        log.warning("%s is not whole: the best is looked for anew from step %d", directory.best, curves.best_from)
    identity = {
        "config": saved,
        "tokenizer": data.tokenizer.as_config(),
        "corpus_sha256": data.corpus_sha256,
    }
    checkpoints = Checkpoints(directory, identity, last_is_whole=checkpoint == directory.last)
    callbacks += [
        *moving_average(config["trainer"].get("ema_decay")),  # behind all that look at it while it stands in
        Interruption(directory, checkpoints, clock),  # the signals first: to compile takes long
        compilation,
        rollbacks,
        checkpoints,
        RankError(directory),
    ]
    trainer = make_trainer(
        config["trainer"],
        callbacks=callbacks,
        logger=instantiate(config["logger"], "logger"),
        plugins=[SealedCheckpointIO()],
        default_root_dir=str(directory.path),
        enable_checkpointing=True,
    )
    compilation.decide(trainer)
    check_strategy(module, trainer)
    check_batch(data.batch_size, module.model, trainer.world_size)
    if trainer.strategy.root_device.type == "cpu":
        passes, here = trainer.accumulate_grad_batches, trainer.num_devices
        out_of_memory.check(module, data.batch_size * here // trainer.world_size, data.block_size, here, passes)
    resumed = config["resume"] != "never"
    run = Run(
        config, directory, resumed, checkpoint, progress, data, module, trainer, clock, curves, rollbacks, repeated
    )
    if progress:
        check_state(run, progress)
        tell_changes(progress["chargpt"]["config"], saved)
    return run


def _config_of(
    directory: RunDirectory, progress: dict[str, Any] | None, composed: dict[str, Any]
) -> dict[str, Any]:
    """The config of a run that goes on or is repeated, with what this command line may change of it."""
    saved = OmegaConf.to_container(directory.read_config() or OmegaConf.create())
    if progress:
        saved |= progress["chargpt"]["config"]
    saved["data"] = text_settings(saved)
    return changed(saved, composed, task_words(), directory.read_choices())
