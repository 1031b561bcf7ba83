"""Decides whether `resume=auto` starts, resumes or skips the run of a directory.

The run directory is a function of the overrides, so the same command selects the same directory. Its content is
inspected under the directory's lock and before torch is imported.
"""

import enum
import hashlib
import logging
import math
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from chargpt.config.instantiate import SAVED_KEYS_SINCE_0_3
from chargpt.config.raw_values import quote_value
from chargpt.data.text_files import SUFFIXES, TextFiles
from chargpt.distributed.env import launched_as_rank
from chargpt.errors import ExitCode, UserError
from chargpt.runs import lock
from chargpt.runs.directory import RunDirectory
from chargpt.runs.identity import LENGTH, identity
from chargpt.runs.retention import check_resumable
from chargpt.runs.score import Monitor, score_of
from chargpt.utils.duration import parse_duration
from chargpt.utils.paths import resolve_path

log = logging.getLogger(__name__)

TEXT_FILES = "chargpt.data.datamodule.TextDataModule.from_files"  # the `_target_` of `data=text_file`


class Decision(enum.Enum):
    """What `resume=auto` means for a directory."""

    START = enum.auto()
    RESUME = enum.auto()
    RESTART = enum.auto()
    SKIP_FINISHED = enum.auto()
    SKIP_FAILED = enum.auto()


def resolve(config: DictConfig, directory: RunDirectory) -> Decision:
    """Decides `resume=auto` for a directory, and prepares the directory for the decision.

    Returns:
        START, RESUME or RESTART if the run is to be trained; this process then holds the lock. SKIP_FINISHED or
        SKIP_FAILED if there is nothing to do; the lock is released.

    Raises:
        UserError: the directory cannot be created, or contains a different run.
    """
    directory.new = not directory.path.exists()
    try:
        directory.make_parents()
        directory.path.mkdir(exist_ok=True)
    except OSError as error:
        directory.remove_parents()
        raise UserError(f"the run directory {directory.path} cannot be created: {error.strerror}") from error
    if lock.is_held(directory.path):
        log.info("another process is training in %s: waiting for it", directory.path)
    # Under torchrun or srun the other ranks inspect the directory without the lock, and then wait for this one.
    lock.acquire(directory.path, timeout=1.0 if launched_as_rank() else math.inf)
    try:
        decision = inspect(config, directory)
    except UserError:
        lock.release(directory.path)
        directory.remove_if_unused()
        raise
    if decision == Decision.RESTART:
        log.info("%s %s: starting again", directory.path, _describe_status(directory))
        directory.clear()
    elif decision == Decision.RESUME:
        log.info("resuming %s from its last checkpoint", directory.path)
    elif decision in (Decision.SKIP_FINISHED, Decision.SKIP_FAILED):
        lock.release(directory.path)
    return decision


def inspect(config: DictConfig, directory: RunDirectory) -> Decision:
    """Returns the decision of `resolve` without writing anything or taking the lock.

    Args:
        config: the composed config of this command.
    """
    saved = directory.read_config()
    if saved is None:
        return Decision.START if not directory.status_file.exists() else Decision.RESTART
    state = directory.read_status()["state"]
    keys = [key for key in {**saved, **dict.fromkeys(SAVED_KEYS_SINCE_0_3)} if key in config]
    requested = DictConfig(OmegaConf.to_container(OmegaConf.masked_copy(config, keys), resolve=True))
    _check_same_run(directory, saved, requested)
    if directory.metrics.exists():
        _check_same_text(directory, requested)
        extended = _is_extended(directory, saved.trainer, requested.trainer)
        if extended:
            check_resumable(directory)
        return Decision.RESUME if extended else Decision.SKIP_FINISHED
    if state in ("diverged", "pruned"):
        return Decision.SKIP_FAILED
    # A failed run is resumed too: the cause (a full disk, a killed rank, a bug) may be gone.
    return (
        Decision.RESUME
        if any(path.exists() for path in (directory.last, directory.previous, directory.best))
        else Decision.RESTART
    )


def describe(directory: RunDirectory, decision: Decision) -> str:
    """One line about a run that is skipped."""
    if decision == Decision.SKIP_FINISHED:
        metrics = directory.read_metrics()
        monitor = Monitor.of(metrics)
        score = score_of(metrics, monitor)
        result = "no validation" if score is None else f"{monitor.label} {score:.4f}"
        result += " (partial validation)" if metrics.get("partial_validation") else ""
        return f"{directory.path} is already finished: {result}"
    return f"{directory.path} {_describe_status(directory)}; delete it to run it again"


def exit_code(directory: RunDirectory, decision: Decision) -> int:
    """The exit code for a run that is skipped: the one that its training ended with."""
    diverged = decision == Decision.SKIP_FAILED and directory.read_status()["state"] != "pruned"
    return ExitCode.FAILED if diverged else ExitCode.DONE


def _describe_status(directory: RunDirectory) -> str:
    status = directory.read_status()
    reason = f" ({status['reason']})" if status.get("reason") else ""
    return f"{status['state']} at step {status['step']}{reason}"


def _check_same_run(directory: RunDirectory, saved: DictConfig, requested: DictConfig) -> None:
    old, new = identity(saved), identity(requested)
    different = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
    if {"seed", "model.block_size"} & set(different):  # `data` refers to them: report each once
        different = [key for key in different if key not in ("data.seed", "data.block_size")]
    if different:
        shown = ", ".join(f"{key}={old.get(key)} there, {new.get(key)} here" for key in different[:3])
        more = f", and {len(different) - 3} more" if len(different) > 3 else ""
        raise UserError(
            f"{directory.path} contains a different run: {shown}{more}. Choose another name=, or delete that directory"
        )


def _check_same_text(directory: RunDirectory, requested: DictConfig) -> None:
    """Raises `UserError` if the text file has changed since the run finished."""
    if requested.data.get("_target_") != TEXT_FILES:
        return
    corpus = TextFiles(requested.data.path, requested.data.get("suffixes", SUFFIXES))
    digest = hashlib.sha256(corpus.read().encode()).hexdigest()
    saved_digest = directory.read_metrics()["corpus_sha256"]
    if digest != saved_digest:
        raise UserError(
            f"{directory.path} was trained on another text: corpus sha256 {saved_digest[:12]}..., "
            f"now {digest[:12]}... Choose another name=, or delete that directory"
        )


def _is_extended(directory: RunDirectory, saved: DictConfig, requested: DictConfig) -> bool:
    """Whether more steps or more time are requested than for the finished run. Raises `UserError` if less is."""
    old, new = _run_length(saved), _run_length(requested)
    for key, end in new.items():
        if end < old[key]:
            raise UserError(
                f"trainer.{key}={requested[key]}: {directory.path} was planned for trainer.{key}={saved.get(key)} and "
                f"cannot be shortened. Increase it, or choose another name="
            )
    return old != new


def changed_lengths(config: DictConfig, directory: RunDirectory) -> list[str]:
    """Overrides for the settings of the length that differ from those of the run."""
    saved = directory.read_config()
    assert saved is not None  # `inspect` has decided to resume it
    values = {path: (OmegaConf.select(config, path), OmegaConf.select(saved, path)) for path in LENGTH}
    return [
        f"{path}={'null' if new is None else quote_value(new) if isinstance(new, str) else new}"
        for path, (new, old) in values.items()
        if new != old and not OmegaConf.is_config(new)
    ]


def _run_length(trainer: DictConfig) -> dict[str, float]:
    limits = {key: trainer.get(key) for key in ("max_steps", "max_epochs")}
    steps = {key: math.inf if value in (None, -1) else value for key, value in limits.items()}
    return {**steps, "max_time": parse_duration(trainer.max_time) or math.inf}


def run_directory_of(resume: str) -> Path:
    """The run directory of `resume=RUN`, where RUN is the directory or one of its checkpoints."""
    path = resolve_path("resume", resume)
    return path.parent.parent if path.is_file() else path
