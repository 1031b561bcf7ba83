"""Runs training from a composed config to metrics.json: setup, fit, summary."""

import contextlib
import logging
import logging.handlers
from collections.abc import Sequence
from typing import Any, cast

import torch
from omegaconf import OmegaConf

from chargpt.config.compose import task_overrides
from chargpt.config.instantiate import COMPONENTS, CONSTRUCTOR_ERRORS, SAVED_KEYS, SAVED_KEYS_SINCE_0_3
from chargpt.config.model import build_model
from chargpt.config.trust import COMPOSED, Trust, targets_of, trusted_packages
from chargpt.data.dataloader import limit_batches
from chargpt.distributed import env
from chargpt.distributed.rendezvous import destroy_process_group, init_process_group
from chargpt.errors import DivergenceError, TrainingError, UserError
from chargpt.inference.pretrained import data_config
from chargpt.optim.ema import make_ema
from chargpt.runs import reproduce
from chargpt.runs.directory import RunDirectory
from chargpt.runs.identity import OLDER_DEFAULTS
from chargpt.runs.observers import restore_observers
from chargpt.runs.overrides import apply_overrides, log_changes
from chargpt.runs.score import Monitor
from chargpt.training import complete_validation, out_of_memory, report
from chargpt.training.callbacks.checkpoint import CheckpointCallback, ChecksumCheckpointIO
from chargpt.training.callbacks.divergence import ADVICE, MAX_ROLLBACKS, DivergenceRollback
from chargpt.training.callbacks.interrupt import InterruptHandler
from chargpt.training.callbacks.metrics import MetricsCallback
from chargpt.training.callbacks.rank_errors import RankErrorFile
from chargpt.training.callbacks.recorder import RunRecorder
from chargpt.training.callbacks.resume_validation import ResumeValidation
from chargpt.training.callbacks.timer import TrainingTimer
from chargpt.training.checks import (
    check_batch,
    check_callbacks,
    check_config,
    check_model,
    check_monitor,
    check_strategy,
)
from chargpt.training.compilation import Compilation
from chargpt.training.cpu_precision import BroadcastCPUDtypes, select_cpu_dtypes
from chargpt.training.loggers import dispatch
from chargpt.training.loggers.csv_history import CSVHistory
from chargpt.training.outcome import RollbackRequested, record_outcome
from chargpt.training.restore import best_is_intact, check_state, find_state, invalid_state_as_user_error
from chargpt.training.retention import remove_checkpoints
from chargpt.training.setup import Origin, Run, load_data, make_callbacks, make_loggers, make_module, set_threads
from chargpt.training.summary import summarize
from chargpt.training.trainer import build_trainer
from chargpt.utils.duration import parse_duration
from chargpt.utils.memory import disable_malloc_trim
from chargpt.utils.paths import resolve_path
from chargpt.utils.seeding import fold_in

log = logging.getLogger(__name__)


def train(config: dict[str, Any], directory: RunDirectory) -> None:
    """Trains a run; with `on_divergence=rollback`, restarts it from the last good checkpoint after a divergence.

    Args:
        config: the composed and resolved config.
        directory: the run directory.

    Raises:
        UserError: a setting or a file is invalid; the run has not started.
        Interrupted: after a signal; the run is saved and can be resumed.
        DivergenceError: the loss is NaN or infinite.
    """
    disable_malloc_trim()
    diverged_at: list[int] = []
    while True:
        try:
            _train(config, directory, diverged_at)
            return
        except RollbackRequested as rollback:
            diverged_at = rollback.diverged_at
            config = config | {"resume": str(directory.path)}


def _train(config: dict[str, Any], directory: RunDirectory, diverged_at: list[int]) -> None:
    messages = logging.handlers.MemoryHandler(10_000)  # until train.log is opened
    logging.getLogger().addHandler(messages)
    try:
        run, recorder = setup(config, directory, messages, diverged_at)
    except BaseException:
        logging.getLogger().removeHandler(messages)
        raise
    results = None  # on the other ranks
    with record_outcome(run, recorder), dispatch.finishing(run.trainer.loggers):
        if not run.origin.resumed:  # the directory of a resumed run is opened after the first step
            recorder.open(run.trainer, run.module)
        if run.trainer.is_global_zero:
            report.log_header(run)
            env.notify_ready()
        init_process_group(run.trainer)
        fit(run, recorder)
        complete_loss = complete_validation.measure_best(run) if complete_validation.is_required(run) else None
        if run.trainer.is_global_zero:
            results = summarize(run, complete_loss)
        destroy_process_group()
    if results is not None:
        remove_checkpoints(run.directory, run.keep)
        report.print_results(run, *results)
        report.print_profile(run)
        if run.origin.original:
            reproduce.log_differences(run.origin.original, run.directory)


def setup(
    config: dict[str, Any],
    directory: RunDirectory,
    messages: logging.handlers.MemoryHandler,
    diverged_at: Sequence[int] = (),
) -> tuple[Run, RunRecorder]:
    """Builds and validates every component before anything is written.

    Args:
        messages: buffers log records until `train.log` is opened.
        diverged_at: the steps at which the run has diverged in this process.

    Returns:
        The run, and the callback that writes its files.
    """
    composed = [config[key] for key in COMPONENTS]
    trust = Trust(targets=frozenset(targets_of(composed)), packages=trusted_packages(config.get("trust")))
    if config["resume"] != "never":
        directory, path, checkpoint = find_state(resolve_path("resume", config["resume"]))
        origin = Origin(
            True,
            path,
            checkpoint,
            threads=reproduce.saved_threads(directory, checkpoint),
            cpu_dtypes=reproduce.saved_cpu_dtypes(directory, checkpoint),
        )
        with invalid_state_as_user_error(path or directory.config):
            config = config | saved_config(directory, checkpoint, config)
            return _build(config, directory, origin, messages, diverged_at, trust)
    if original := reproduce.original_run(config["rerun"], config["resume"]):
        with invalid_state_as_user_error(original.config):
            config = config | saved_config(original, None, config)
            origin = Origin(
                original=original,
                threads=reproduce.saved_threads(original),
                cpu_dtypes=reproduce.saved_cpu_dtypes(original),
            )
            return _build(config, directory, origin, messages, diverged_at, trust)
    return _build(config, directory, Origin(), messages, diverged_at, COMPOSED)


def saved_config(
    directory: RunDirectory, checkpoint: dict[str, Any] | None, composed: dict[str, Any]
) -> dict[str, Any]:
    """The config of a run that is resumed or repeated, with the permitted overrides of this command line."""
    saved: dict[str, Any] = {key: OLDER_DEFAULTS[key] for key in SAVED_KEYS_SINCE_0_3}
    saved |= cast(dict[str, Any], OmegaConf.to_container(directory.read_config() or OmegaConf.create()))
    if checkpoint:  # other keys of an untrusted file are ignored: callbacks and loggers could run any code
        trained = checkpoint["chargpt"]["config"]
        saved |= {key: trained[key] for key in (*SAVED_KEYS, *SAVED_KEYS_SINCE_0_3) if key in trained}
    saved["data"] = data_config(saved)
    saved = apply_overrides(saved, composed, task_overrides(), directory.read_choices())
    return saved | restore_observers(directory, saved)


def _build(
    config: dict[str, Any],
    directory: RunDirectory,
    origin: Origin,
    messages: logging.handlers.MemoryHandler,
    diverged_at: Sequence[int],
    trust: Trust,
) -> tuple[Run, RunRecorder]:
    saved = {key: config[key] for key in (*SAVED_KEYS, *SAVED_KEYS_SINCE_0_3)}
    check_config(saved)
    set_threads(config["trainer"].get("threads", "auto"), origin)
    select_cpu_dtypes(config["trainer"], origin.cpu_dtypes)
    settings, checkpoint = config["trainer"], origin.checkpoint
    monitor = Monitor(config["monitor"], config["mode"])
    check_monitor(monitor, config["callbacks"])

    torch.manual_seed(fold_in(config["seed"]))
    data = load_data(config["data"], directory, checkpoint, trust)
    assert data.tokenizer is not None  # set by `load_data`
    if origin.original:
        reproduce.check_text(origin.original, data.corpus_sha256)
    data.limit_train_batches, data.overfit_batches = (
        settings.get(name) for name in ("limit_train_batches", "overfit_batches")
    )
    model = build_model(config["model"], data.tokenizer.vocab_size, trust)
    check_model(model, data)
    module = make_module(model, config["optimizer"], config["schedule"], config["seed"], trust)

    seconds = parse_duration(settings["max_time"])
    timer = TrainingTimer(seconds)
    metrics_callback = MetricsCallback(timer, CSVHistory(directory.history, monitor.name), monitor)
    rollbacks = DivergenceRollback(config["on_divergence"], diverged_at)
    module.time_fraction, module.lr_scale = timer.time_fraction, lambda: rollbacks.lr_scale
    compilation = Compilation(settings.get("compile", "auto"), seconds, timer)
    if checkpoint and not best_is_intact(directory, checkpoint, trust):
        metrics_callback.best_from = origin.step
        log.warning(
            "%s is damaged or missing: the best checkpoint is selected anew from step %d",
            directory.best,
            origin.step,
        )
    identity = {"config": saved, "tokenizer": data.tokenizer.as_config(), "corpus_sha256": data.corpus_sha256}
    checkpoints = CheckpointCallback(
        directory,
        metrics_callback,
        identity,
        last_is_intact=origin.checkpoint_path == directory.last,
        **(config.get("checkpoint") or {}),
    )
    recorder = RunRecorder(directory, config, origin, data, metrics_callback, messages)
    if origin.resumed:
        loggers = make_loggers(config["logger"], origin.logged_step, directory.read_logger_runs())
    else:
        loggers = make_loggers(config["logger"], None)
    trainer = build_trainer(
        settings,
        data.batches_per_epoch,
        callbacks=[
            timer,
            metrics_callback,
            *make_callbacks(config["callbacks"], metrics_callback, timer),
            *make_ema(settings.get("ema_decay")),  # after all callbacks that use the averaged weights
            recorder,
            InterruptHandler(directory, checkpoints, timer, metrics_callback),  # before compilation, which takes long
            ResumeValidation(origin.validation_due, recorder.open),
            compilation,
            rollbacks,
            checkpoints,
            RankErrorFile(directory),
            BroadcastCPUDtypes(),
        ],
        logger=loggers,
        plugins=[ChecksumCheckpointIO()],
        default_root_dir=str(directory.path),
        enable_checkpointing=True,
    )
    if trainer.limit_val_batches:
        batches = data.validation_batches(trainer.world_size)
        trainer.limit_val_batches = limit_batches("trainer.limit_val_batches", trainer.limit_val_batches, batches)
    compilation.decide(trainer)
    check_strategy(module, trainer, settings["strategy"])
    check_callbacks(trainer, config["callbacks"])
    check_batch(data.batch_size, model, trainer.world_size)
    if trainer.strategy.root_device.type == "cpu":
        passes, local = trainer.accumulate_grad_batches, trainer.num_devices
        out_of_memory.check(module, data.batch_size * local // trainer.world_size, data.block_size, local, passes)
    if not trainer.is_global_zero:  # only rank 0 writes train.log
        logging.getLogger().removeHandler(messages)
    # What this command has composed, and the tokenizer that it has built. The config of a resumed run is a file's.
    own = Trust(targets=trust.targets | frozenset(targets_of(identity))) if trust.everything else trust
    run = Run(
        config, directory, origin, data, module, trainer, timer, metrics_callback, rollbacks, own, checkpoints.keep
    )
    if checkpoint:
        check_state(run, checkpoint)
        log_changes(checkpoint["chargpt"]["config"], saved)
    return run, recorder


def fit(run: Run, recorder: RunRecorder) -> None:
    """Trains to the end.

    Raises:
        RollbackRequested: the run diverged and may be rolled back to its last good checkpoint.
        DivergenceError: the run diverged and may not be rolled back.
        TrainingError: out of memory.
        UserError: the checkpoint cannot be loaded.
    """
    path = run.origin.checkpoint_path
    weights_only = True if path else None
    try:
        run.trainer.fit(run.module, datamodule=run.data, ckpt_path=path, weights_only=weights_only)
    except CONSTRUCTOR_ERRORS as error:
        if isinstance(error, UserError) and run.trainer.global_step > run.origin.step:  # in code of the user's
            raise TrainingError(f"step {run.trainer.global_step + 1}: {error}") from error
        if run.config["trainer"].get("detect_anomaly") and "returned nan values" in str(error):
            raise TrainingError(
                f"trainer.detect_anomaly: step {run.trainer.global_step + 1}: {error} The warning above shows the "
                f"operation: {ADVICE}"
            ) from error
        if out_of_memory.is_out_of_memory(error):
            raise TrainingError(_out_of_memory(run, error)) from error
        with invalid_state_as_user_error(path) if path and not recorder.is_open else contextlib.nullcontext():
            raise
    except DivergenceError as error:
        if not run.rollbacks.can_roll_back():
            raise
        count = len(run.rollbacks.steps) + 1
        log.warning("%s. Rolling back, with half the learning rate (%d of %d)", error, count, MAX_ROLLBACKS)
        run.trainer.strategy.barrier()  # rank 0 may still be replacing last.ckpt
        raise RollbackRequested([*run.rollbacks.steps, run.trainer.global_step]) from error


def _out_of_memory(run: Run, error: BaseException) -> str:
    data, trainer = run.data, run.trainer
    sizes = (data.batch_size, data.block_size, trainer.world_size, trainer.accumulate_grad_batches)
    if (device := trainer.strategy.root_device).type == "cuda":
        return out_of_memory.describe_gpu(error, device, run.model.batch_multiple, *sizes)
    return out_of_memory.describe(run.module, *sizes)
