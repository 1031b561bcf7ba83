"""One training run, from a composed config to metrics.json: set-up, fit, summary."""

import contextlib
import logging
import logging.handlers
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from chargpt.config.compose import task_overrides
from chargpt.config.instantiate import REFUSALS, SAVED, SAVED_SINCE, build
from chargpt.distributed import env
from chargpt.distributed.rendezvous import join, leave
from chargpt.errors import Diverged, Failed, Mistake
from chargpt.inference.pretrained import text_settings
from chargpt.model.language_model import LanguageModel
from chargpt.optim.ema import moving_average
from chargpt.runs import reproduce
from chargpt.runs.directory import RunDirectory
from chargpt.runs.identity import LATER
from chargpt.runs.overrides import changed, tell_changes
from chargpt.runs.score import Monitor
from chargpt.training import out_of_memory, report
from chargpt.training.callbacks.checkpoint import Checkpoints, SealedCheckpointIO
from chargpt.training.callbacks.divergence import MOST, Rollbacks
from chargpt.training.callbacks.interrupt import Interruption
from chargpt.training.callbacks.metrics import Curves
from chargpt.training.callbacks.rank_errors import RankError
from chargpt.training.callbacks.record import Record
from chargpt.training.callbacks.timer import TrainingClock
from chargpt.training.compilation import Compilation
from chargpt.training.loggers.history import History
from chargpt.training.outcome import GoBack, recorded
from chargpt.training.restore import best_is_whole, check_state, find_state, state_of
from chargpt.training.setup import (
    Origin,
    Run,
    check_batch,
    check_model,
    check_monitor,
    check_strategy,
    make_callbacks,
    make_loggers,
    make_module,
    read_text,
)
from chargpt.training.summary import summarize
from chargpt.training.trainer import make_trainer
from chargpt.utils.duration import seconds_of
from chargpt.utils.memory import keep_heap
from chargpt.utils.paths import typed_path
from chargpt.utils.seeding import derive

log = logging.getLogger(__name__)


def train(config: dict[str, Any], directory: RunDirectory) -> None:
    """Trains what the config says; with `on_divergence=rollback`, from the last good checkpoint again.

    Args:
        config: as composed for this command line, resolved.
        directory: of the run.

    Raises:
        Mistake: before anything was written.
        Interrupted: a signal; the run is saved and can go on.
        Diverged: the loss is no longer a number.
    """
    keep_heap()
    diverged_at: list[int] = []
    while True:
        try:
            _train(config, directory, diverged_at)
            return
        except GoBack as back:
            diverged_at = back.diverged_at
            config = config | {"resume": str(directory.path)}


def _train(config: dict[str, Any], directory: RunDirectory, diverged_at: list[int]) -> None:
    messages = logging.handlers.MemoryHandler(10_000)  # until train.log has a place
    logging.getLogger().addHandler(messages)
    try:
        run, record = setup(config, directory, messages, diverged_at)
    except BaseException:
        logging.getLogger().removeHandler(messages)
        raise
    with recorded(run, record):
        if not run.origin.resumed:  # a run that goes on is touched once its first step has shown that it can
            record.open(run.trainer, run.module)
        if run.trainer.is_global_zero:
            report.opening(run)
            env.tell_ready()
        join(run.trainer)
        fit(run, record)
        if run.trainer.is_global_zero:
            metrics, text = summarize(run)
        leave()
    if run.trainer.is_global_zero:
        report.closing(run, metrics, text)
        if run.origin.repeated:
            reproduce.tell(run.origin.repeated, run.directory)


def setup(
    config: dict[str, Any],
    directory: RunDirectory,
    messages: logging.handlers.MemoryHandler,
    diverged_at: Sequence[int] = (),
) -> tuple[Run, Record]:
    """Builds every part and checks it, before anything is written.

    Args:
        messages: what is logged, for `train.log`.
        diverged_at: the steps at which this process has seen the run diverge, before it went back.

    Returns:
        The run, and the callback that writes its record.
    """
    if config["resume"] != "never":
        directory, checkpoint, progress = find_state(typed_path("resume", config["resume"]))
        origin = Origin(resumed=True, checkpoint=checkpoint, progress=progress)
        with state_of(checkpoint or directory.config):
            config = config | saved_config(directory, progress, config)
            return _build(config, directory, origin, messages, diverged_at)
    if repeated := reproduce.original(config["rerun"], config["resume"]):
        with state_of(repeated.config):
            config = config | saved_config(repeated, None, config)
            return _build(config, directory, Origin(repeated=repeated), messages, diverged_at)
    return _build(config, directory, Origin(), messages, diverged_at)


def saved_config(
    directory: RunDirectory, progress: dict[str, Any] | None, composed: dict[str, Any]
) -> dict[str, Any]:
    """The config of a run that goes on or is repeated, with what this command line may change of it."""
    saved = {key: LATER[key] for key in SAVED_SINCE}
    saved |= OmegaConf.to_container(directory.read_config() or OmegaConf.create())
    if progress:  # of the rest nothing is taken from a file: callbacks and loggers may be anything
        content = progress["chargpt"]["config"]
        saved |= {key: content[key] for key in (*SAVED, *SAVED_SINCE) if key in content}
    saved["data"] = text_settings(saved)
    return changed(saved, composed, task_overrides(), directory.read_choices())


def _build(
    config: dict[str, Any],
    directory: RunDirectory,
    origin: Origin,
    messages: logging.handlers.MemoryHandler,
    diverged_at: Sequence[int],
) -> tuple[Run, Record]:
    if Path(str(config["name"])).name != str(config["name"]):
        raise Mistake(f"name={config['name']}: it is the name of a folder in outputs/, and no path")
    settings, progress = config["trainer"], origin.progress
    monitor = Monitor(config["monitor"], config["mode"])
    check_monitor(monitor, config["callbacks"])

    torch.manual_seed(derive(config["seed"]))
    data = read_text(config["data"], directory, progress)
    if origin.repeated:
        reproduce.check_text(origin.repeated, data.corpus_sha256)
    model = build(config["model"], "model", LanguageModel, vocab_size=data.tokenizer.vocab_size)
    check_model(model, data)
    module = make_module(model, config["optimizer"], config["schedule"], config["seed"])

    seconds = seconds_of(settings["max_time"])
    clock = TrainingClock(seconds)
    curves = Curves(clock, History(directory.history, monitor.name), monitor)
    rollbacks = Rollbacks(config["on_divergence"], diverged_at)
    module.time_used, module.lr_scale = clock.time_used, lambda: rollbacks.lr_scale
    compilation = Compilation(settings.get("compile", "auto"), seconds, clock)
    if progress and not best_is_whole(directory, progress):
        curves.best_from = origin.step
        log.warning("%s is not whole: the best is looked for anew from step %d", directory.best, curves.best_from)
    saved = {key: config[key] for key in (*SAVED, *SAVED_SINCE)}
    identity = {"config": saved, "tokenizer": data.tokenizer.as_config(), "corpus_sha256": data.corpus_sha256}
    checkpoints = Checkpoints(directory, curves, identity, last_is_whole=origin.checkpoint == directory.last)
    record = Record(directory, config, origin, data, curves, messages)
    trainer = make_trainer(
        settings,
        callbacks=[
            clock,
            curves,
            *make_callbacks(config["callbacks"], curves, clock),
            *moving_average(settings.get("ema_decay")),  # behind all that look at it while it stands in
            record,
            Interruption(directory, checkpoints, clock, curves),  # the signals first: to compile takes long
            compilation,
            rollbacks,
            checkpoints,
            RankError(directory),
        ],
        logger=make_loggers(config["logger"], origin.step if origin.resumed else None),
        plugins=[SealedCheckpointIO()],
        default_root_dir=str(directory.path),
        enable_checkpointing=True,
    )
    compilation.decide(trainer)
    check_strategy(module, trainer)
    check_batch(data.batch_size, model, trainer.world_size)
    if trainer.strategy.root_device.type == "cpu":
        passes, here = trainer.accumulate_grad_batches, trainer.num_devices
        out_of_memory.check(module, data.batch_size * here // trainer.world_size, data.block_size, here, passes)
    if not trainer.is_global_zero:  # which alone writes train.log
        logging.getLogger().removeHandler(messages)
    run = Run(config, directory, origin, data, module, trainer, clock, curves, rollbacks)
    if progress:
        check_state(run, progress)
        tell_changes(progress["chargpt"]["config"], saved)
    return run, record


def fit(run: Run, record: Record) -> None:
    """Trains to the end.

    Raises:
        GoBack: the loss is no longer a number, and the run may go back to its last good checkpoint.
        Diverged: it may not.
        Failed: memory is not enough.
        Mistake: the checkpoint cannot be loaded.
    """
    checkpoint = run.origin.checkpoint
    weights_only = True if checkpoint else None
    try:
        run.trainer.fit(run.module, datamodule=run.data, ckpt_path=checkpoint, weights_only=weights_only)
    except REFUSALS as error:
        if out_of_memory.is_out_of_memory(error):
            raise Failed(_out_of_memory(run, error)) from error
        with state_of(checkpoint) if checkpoint and not record.is_open else contextlib.nullcontext():
            raise
    except Diverged as error:
        if not run.rollbacks.may_go_back():
            raise
        times = len(run.rollbacks.steps) + 1
        log.warning("%s. Going back, with the learning rate halved (%d of %d)", error, times, MOST)
        raise GoBack([*run.rollbacks.steps, run.trainer.global_step]) from error


def _out_of_memory(run: Run, error: BaseException) -> str:
    data, trainer = run.data, run.trainer
    sizes = (data.batch_size, data.block_size, trainer.world_size, trainer.accumulate_grad_batches)
    if (device := trainer.strategy.root_device).type == "cuda":
        return out_of_memory.told_by_gpu(error, device, run.model.batch_multiple, *sizes)
    return out_of_memory.told(run.module, *sizes)
