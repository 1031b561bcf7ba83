"""One training run, from a composed config to metrics.json."""

import contextlib
import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hydra
import lightning as L
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from chargpt.config.build import build
from chargpt.config.entry import place_run
from chargpt.data.datamodule import TextDataModule
from chargpt.errors import Diverged, Interrupted, Mistake
from chargpt.model.language_model import LanguageModel
from chargpt.model.loss import bits_per_character, perplexity
from chargpt.randomness import derive
from chargpt.sampling.trained import find_checkpoint, load, read_checkpoint
from chargpt.training import report
from chargpt.training.checkpoint import Checkpoints, WholeCheckpointIO
from chargpt.training.clock import TrainingClock, seconds_of
from chargpt.training.curves import Curves
from chargpt.training.hardware import device_name, make_trainer
from chargpt.training.history import History
from chargpt.training.interruption import Interruption
from chargpt.training.module import LanguageModeling
from chargpt.training.resume import changed
from chargpt.training.run_directory import RunDirectory, provenance, write_hydra, write_json, write_whole
from chargpt.training.tensorboard import TensorBoard

log = logging.getLogger(__name__)

# The parts of the config that identify a run, and travel in its checkpoints.
SAVED = ("name", "seed", "model", "data", "optimizer", "schedule", "trainer")


@dataclass
class Run:
    """All that a run needs, built and checked, before anything of it is on disk."""

    config: dict[str, Any]
    directory: RunDirectory
    checkpoint: Path | None
    data: TextDataModule
    module: LanguageModeling
    trainer: L.Trainer
    clock: TrainingClock
    curves: Curves

    @property
    def model(self) -> LanguageModel:
        return self.module.model


def train(composed: DictConfig) -> None:
    """Trains what the config says.

    Raises:
        Mistake: before anything was written.
        Interrupted: a signal; the run is saved and can go on.
        Diverged: the loss is no longer a number.
    """
    started = time.perf_counter()
    run = prepare(composed)
    rank_zero = run.trainer.is_global_zero
    if rank_zero:
        open_directory(run, composed)
        report.opening(run)
    try:
        run.trainer.fit(
            run.module,
            datamodule=run.data,
            ckpt_path=run.checkpoint,
            weights_only=True if run.checkpoint else None,
        )
        if rank_zero:
            finish(run, time.perf_counter() - started)
    except Interrupted:
        if rank_zero:  # the others leave in silence: a code other than 0 would have Lightning kill rank 0
            raise
    except Diverged as error:
        run.directory.write_status("diverged", run.trainer.global_step, str(error))
        raise
    except SystemExit as left:  # a second Ctrl-C: Lightning has torn itself down and leaves with 1
        if not rank_zero or not isinstance(left.__context__, KeyboardInterrupt):
            raise
        run.directory.write_status("interrupted", run.trainer.global_step, "a second signal")
        go_on = f"go on from the last checkpoint with: python train.py resume={run.directory.path}"
        nothing = "it had no checkpoint yet"
        raise Interrupted(f"quit; {go_on if run.directory.last.exists() else nothing}") from None
    except BaseException as error:
        if rank_zero:
            with contextlib.suppress(OSError):
                reason = f"{type(error).__name__}: {error}".splitlines()[0]
                run.directory.write_status("failed", run.trainer.global_step, reason)
        raise


def prepare(composed: DictConfig) -> Run:
    """Builds every part, so that each mistake is told before a directory is made."""
    hydra_config = HydraConfig.get()
    config = OmegaConf.to_container(composed, resolve=True)
    directory, checkpoint, progress = RunDirectory(hydra_config.run.dir), None, None
    resumed_tokenizer = None
    if config["resume"] != "never":
        checkpoint = find_checkpoint(Path(config["resume"]).expanduser(), ("last.ckpt", "previous.ckpt"))
        if checkpoint.parent.name != "checkpoints":
            raise Mistake(f"resume={checkpoint} is not in a run directory: name the run, resume=outputs/...")
        directory = RunDirectory(checkpoint.parent.parent)
        progress = read_checkpoint(checkpoint)
        overrides = list(hydra_config.overrides.task)
        config |= changed(progress["chargpt"]["config"], config, overrides)
        resumed_tokenizer = build(progress["chargpt"]["tokenizer"], "tokenizer")
        place_run(directory.path)
        config |= {k: OmegaConf.to_container(composed[k], resolve=True) for k in ("logger", "callbacks")}
    saved = {key: config[key] for key in SAVED}
    torch.manual_seed(derive(config["seed"]))
    data = build(config["data"], "data")
    data.read(resumed_tokenizer)
    if progress and progress["chargpt"]["corpus_sha256"] != data.corpus_sha256:
        raise Mistake(
            f"{directory.path} was trained on another text: corpus sha256 "
            f"{progress['chargpt']['corpus_sha256'][:12]}..., now {data.corpus_sha256[:12]}..."
        )
    model = build(config["model"], "model", vocab_size=data.tokenizer.vocab_size)
    optimizer, schedule = build(config["optimizer"], "optimizer"), build(config["schedule"], "schedule")
    optimizer(model)  # Lightning makes its own after the model is on its device; this one only checks
    module = LanguageModeling(model, optimizer, schedule, config["seed"])
    clock = TrainingClock(seconds_of(config["trainer"]["max_time"]))
    module.time_used = clock.time_used
    callbacks = [clock, *_instantiate(config["callbacks"], "callbacks")]
    curves = next((c for c in callbacks if isinstance(c, Curves)), None)
    if curves is None:
        raise Mistake("callbacks.curves cannot be left out: history.csv and metrics.json come from it")
    identity = {
        "config": saved,
        "tokenizer": data.tokenizer.as_config(),
        "corpus_sha256": data.corpus_sha256,
    }
    checkpoints = Checkpoints(directory, identity)
    callbacks += [Interruption(directory, checkpoints), checkpoints]
    trainer = make_trainer(
        config["trainer"],
        callbacks=callbacks,
        logger=_instantiate(config["logger"], "logger"),
        plugins=[WholeCheckpointIO()],
        default_root_dir=str(directory.path),
        enable_checkpointing=True,
    )
    if data.batch_size % trainer.world_size:
        raise Mistake(
            f"data.batch_size={data.batch_size} cannot be shared equally by {trainer.world_size} devices: "
            f"make it a multiple of {trainer.world_size}"
        )
    run = Run(config, directory, checkpoint, data, module, trainer, clock, curves)
    if progress:
        _check_progress(run, progress)
    return run


def open_directory(run: Run, composed: DictConfig) -> None:
    """Makes the run directory, or opens it again, and writes down what is about to run."""
    hydra_config = HydraConfig.get()
    directory = run.directory
    if run.checkpoint is None:
        chosen = any(o.startswith("hydra.run.dir=") for o in hydra_config.overrides.hydra)
        directory.claim(chosen)
        place_run(directory.path)  # its name may have got a suffix
    file = logging.FileHandler(directory.path / "train.log", encoding="utf-8")
    file.setFormatter(logging.Formatter("[%(asctime)s][%(name)s][%(levelname)s] %(message)s"))
    logging.getLogger().addHandler(file)
    config = OmegaConf.create({**OmegaConf.to_container(composed, resolve=True), **run.config})
    write_hydra(directory.path / ".hydra", config, hydra_config)
    device = device_name(run.trainer.strategy.root_device)
    record = provenance(
        run.data.corpus.name, run.data.corpus_sha256, device, run.trainer.world_size, torch.get_num_threads()
    )
    write_json(directory.path / "provenance.json", record)
    step = 0 if run.checkpoint is None else read_checkpoint(run.checkpoint)["global_step"]
    for logger in run.trainer.loggers:
        if run.checkpoint is not None and isinstance(logger, History | TensorBoard):
            logger.rewind(step)
        if isinstance(logger, TensorBoard):
            logger.start_hparams(report.hyperparameters(run))
            logger.log_text("config", OmegaConf.to_yaml(config), step)
    directory.metrics.unlink(missing_ok=True)
    directory.write_status("running", step)


def finish(run: Run, wall_seconds: float) -> None:
    """The sample and the metrics of a run that reached its end."""
    directory, curves, data = run.directory, run.curves, run.data
    text = load(directory.best).generate(max_new_tokens=500, seed=run.config["seed"])
    write_whole(directory.sample, text + "\n")
    steps, train_seconds = run.trainer.global_step, run.clock.train_seconds
    tokens = steps * run.trainer.accumulate_grad_batches * data.batch_size * data.block_size
    metrics = {
        "val_loss": curves.best_val_loss,
        "final_val_loss": curves.val_loss,
        "initial_loss": curves.initial_loss,
        "val_bpc": bits_per_character(curves.best_val_loss, data.characters_per_token),
        "val_perplexity": perplexity(curves.best_val_loss),
        "best_step": curves.best_step,
        "steps": steps,
        "train_seconds": train_seconds,
        "wall_seconds": wall_seconds,
        "tokens_per_second": tokens / train_seconds,
        "parameters": run.model.parameter_count(),
        "flops_per_token": run.model.flops_per_token(),
        "corpus": data.corpus.name,
        "corpus_sha256": data.corpus_sha256,
        "seed": run.config["seed"],
        "devices": run.trainer.world_size,
        "torch": torch.__version__,
        "device": device_name(run.trainer.strategy.root_device),
    }
    write_json(directory.metrics, metrics)
    directory.write_status("finished", steps)
    report.closing(directory, metrics, text)


def _check_progress(run: Run, progress: dict[str, Any]) -> None:
    step, end = progress["global_step"], run.trainer.max_steps
    if end != -1 and (step > end or (step == end and run.directory.metrics.exists())):
        raise Mistake(
            f"{run.directory.path} has already done {step} steps of trainer.max_steps={end}: to train it "
            f"further, raise it: resume={run.directory.path} trainer.max_steps={2 * step}"
        )
    before = progress["chargpt"]["devices"]
    if before != run.trainer.world_size:
        log.info(
            "on %d devices instead of %d: the same data, but not the same to the last bit",
            run.trainer.world_size,
            before,
        )


def _instantiate(configs: dict[str, Any] | None, group: str) -> list[Any]:
    """Loggers and callbacks, ours, Lightning's or the user's. They never come from a checkpoint."""
    made = []
    for name, config in (configs or {}).items():
        if not config:
            continue
        try:
            made.append(hydra.utils.instantiate(config))
        except Exception as error:
            cause = error.__cause__ or error
            hint = ": pip install wandb" if "wandb" in str(cause) else ""
            raise Mistake(f"{group}.{name} cannot be made: {str(cause).splitlines()[0]}{hint}") from error
    return made
