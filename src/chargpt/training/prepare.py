"""All that a run needs, built and checked before anything of it is on disk."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hydra
import lightning as L
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from chargpt.config.build import SAVED, build
from chargpt.config.entry import chosen_place, place_run, task_words
from chargpt.data.datamodule import TextDataModule
from chargpt.data.tokenizer import Tokenizer
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
from chargpt.training.rank_error import RankError
from chargpt.training.resume import changed, tell_changes
from chargpt.training.run_directory import RunDirectory
from chargpt.training.saved_state import best_is_whole, check_state, find_state, state_of
from chargpt.training.schedule import Constant
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
    data = _read_text(config, directory, progress)
    if repeated:
        rerun.check_text(repeated, data.corpus_sha256)
    module = _build_module(config, data)
    seconds = seconds_of(config["trainer"]["max_time"])
    clock = TrainingClock(seconds)
    rollbacks = Rollbacks(config["on_divergence"], diverged_at)
    module.time_used, module.lr_scale = clock.time_used, lambda: rollbacks.lr_scale
    compilation = Compilation(config["trainer"].get("compile", "auto"), seconds, clock)
    callbacks = [clock, *_instantiate(config["callbacks"], "callbacks")]
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
        Interruption(directory, checkpoints),  # the signals first: to compile takes long
        compilation,
        rollbacks,
        checkpoints,
        RankError(directory),
    ]
    trainer = make_trainer(
        config["trainer"],
        callbacks=callbacks,
        logger=_instantiate(config["logger"], "logger"),
        plugins=[SealedCheckpointIO()],
        default_root_dir=str(directory.path),
        enable_checkpointing=True,
    )
    compilation.decide(trainer)
    _check_batch(data.batch_size, module.model, trainer.world_size)
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


def _read_text(config: dict[str, Any], directory: RunDirectory, progress: dict[str, Any] | None) -> TextDataModule:
    """The text, in the vocabulary of the run that goes on."""
    data = build(config["data"], "data", TextDataModule)
    if not progress:
        data.read()
        return data
    data.read(build(progress["chargpt"]["tokenizer"], "tokenizer", Tokenizer))
    before = progress["chargpt"]["corpus_sha256"]
    if before != data.corpus_sha256:
        raise Mistake(
            f"{directory.path} was trained on another text: corpus sha256 {before[:12]}..., now "
            f"{data.corpus_sha256[:12]}..."
        )
    return data


def _build_module(config: dict[str, Any], data: TextDataModule) -> LanguageModeling:
    model = build(config["model"], "model", LanguageModel, vocab_size=data.tokenizer.vocab_size)
    if data.block_size > model.block_size:
        raise Mistake(
            f"data.block_size={data.block_size} is more than the model takes: leave it out, and set "
            f"model.block_size={data.block_size}"
        )
    try:
        model.check()
    except ValueError as error:
        raise Mistake(f"model: {error}") from error
    optimizer, schedule = build(config["optimizer"], "optimizer"), build(config["schedule"], "schedule", Constant)
    if not callable(optimizer):
        raise Mistake(f"optimizer is a {type(optimizer).__name__}, and must be a part: optimizer=adamw")
    made = optimizer(model)  # Lightning makes its own after the model is on its device; this one only checks
    if not isinstance(made, torch.optim.Optimizer):
        raise Mistake(f"optimizer makes a {type(made).__name__}, and must make a torch.optim.Optimizer")
    return LanguageModeling(model, optimizer, schedule, config["seed"])


def _config_of(
    directory: RunDirectory, progress: dict[str, Any] | None, composed: dict[str, Any]
) -> dict[str, Any]:
    """The config of a run that goes on or is repeated, with what this command line may change of it."""
    saved = OmegaConf.to_container(directory.read_config() or OmegaConf.create())
    if progress:
        saved |= progress["chargpt"]["config"]
    saved["data"] = text_settings(saved)
    return changed(saved, composed, task_words(), directory.read_choices())


def _check_batch(batch_size: int, model: LanguageModel, devices: int) -> None:
    if batch_size % devices:
        raise Mistake(
            f"data.batch_size={batch_size} cannot be shared equally by {devices} devices: make it a multiple of "
            f"{devices}"
        )
    if batch_size % (multiple := model.batch_multiple * devices):
        raise Mistake(
            f"data.batch_size={batch_size}: each of the model's {model.batch_multiple} members wants an equal "
            f"share on each device: make it a multiple of {multiple}"
        )


def _instantiate(configs: dict[str, Any] | None, group: str) -> list[Any]:
    """Loggers and callbacks, ours, Lightning's or the user's. They never come from a checkpoint."""
    made = []
    for name, config in (configs or {}).items():
        if not config:
            continue
        try:
            part = hydra.utils.instantiate(config)
            if not isinstance(part, L.Callback | L.pytorch.loggers.Logger):
                raise TypeError(f"{type(part).__name__} is no part of Lightning's")
        except Exception as error:
            cause = error.__cause__ or error
            hint = ": pip install wandb" if "wandb" in str(cause) else ""
            raise Mistake(f"{group}.{name} cannot be made: {str(cause).splitlines()[0]}{hint}") from error
        made.append(part)
    return made
