"""How a run begins in a directory that may hold one already: afresh, where it stopped, or not at all.

A run's home in a sweep is a function of its overrides, so the same command finds the same place. What stands there
is looked at before anything heavy is imported, and under the directory's lock.
"""

import enum
import hashlib
import json
import logging
import math
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from chargpt.config.instantiate import SAVED_KEYS_SINCE_0_3
from chargpt.distributed.env import launched_as_rank
from chargpt.errors import ExitCode, UserError
from chargpt.runs import lock
from chargpt.runs.directory import RunDirectory
from chargpt.runs.identity import identity
from chargpt.runs.score import Monitor, score_of
from chargpt.utils.duration import parse_duration
from chargpt.utils.paths import resolve_path

log = logging.getLogger(__name__)


class Decision(enum.Enum):
    """What `resume=auto` means for a directory."""

    START = enum.auto()
    RESUME = enum.auto()
    RESTART = enum.auto()
    SKIP_FINISHED = enum.auto()
    SKIP_FAILED = enum.auto()


def resolve(config: DictConfig, directory: RunDirectory) -> Decision:
    """Decides `resume=auto` for a directory, under its lock, and prepares the directory for what comes.

    Returns:
        START, RESUME and RESTART: to be trained, by the holder of the lock. SKIP_FINISHED and SKIP_FAILED: nothing
        to do.

    Raises:
        UserError: the directory holds another run.
    """
    directory.new = not directory.path.exists()
    try:
        directory.make_parents()
        directory.path.mkdir(exist_ok=True)
    except OSError as error:
        directory.remove_parents()
        raise UserError(f"the run directory {directory.path} cannot be made: {error.strerror}") from error
    if lock.is_held(directory.path):
        log.info("%s is being trained by another process: waiting for it", directory.path)
    # Where torchrun or srun has started others, they have looked already: to wait now would leave them waiting.
    lock.acquire(directory.path, patience=1.0 if launched_as_rank() else float("inf"))
    try:
        decision = inspect(config, directory)
    except UserError:
        lock.release(directory.path)
        directory.remove_if_unused()
        raise
    if decision == Decision.RESTART:
        log.info("%s %s: it starts again", directory.path, _has_failed(directory))
        directory.clear()
    elif decision == Decision.RESUME:
        log.info("%s goes on where it stopped", directory.path)
    elif decision in (Decision.SKIP_FINISHED, Decision.SKIP_FAILED):
        lock.release(directory.path)
    return decision


def inspect(config: DictConfig, directory: RunDirectory) -> Decision:
    """What `resolve` would decide, without touching anything.

    Args:
        config: what this run is to be.
    """
    saved = directory.read_config()
    if saved is None:
        return Decision.START if not directory.status_file.exists() else Decision.RESTART
    state = directory.read_status()["state"]
    keys = [key for key in {**saved, **dict.fromkeys(SAVED_KEYS_SINCE_0_3)} if key in config]
    wanted = OmegaConf.create(OmegaConf.to_container(OmegaConf.masked_copy(config, keys), resolve=True))
    _is_same_run(directory, saved, wanted)
    if directory.metrics.exists():
        _is_same_text(directory, wanted)
        return Decision.RESUME if _is_extended(directory, saved.trainer, wanted.trainer) else Decision.SKIP_FINISHED
    if state in ("diverged", "pruned"):
        return Decision.SKIP_FAILED
    # Also one that failed: of a full disk, of a rank that died, or of a part that is mended now.
    return (
        Decision.RESUME
        if any(path.exists() for path in (directory.last, directory.previous, directory.best))
        else Decision.RESTART
    )


def describe(directory: RunDirectory, decision: Decision) -> str:
    """One line about a run that is not to be trained again."""
    if decision == Decision.SKIP_FINISHED:
        metrics = json.loads(directory.metrics.read_text())
        monitor = Monitor.of(metrics)
        return f"{directory.path} is finished already: {monitor.label} {score_of(metrics, monitor):.4f}"
    return f"{directory.path} {_has_failed(directory)}; remove it to run it again"


def exit_code(directory: RunDirectory, decision: Decision) -> int:
    """That of a run that is not to be trained again: as when it ended."""
    diverged = decision == Decision.SKIP_FAILED and directory.read_status()["state"] != "pruned"
    return ExitCode.FAILED if diverged else ExitCode.DONE


def _has_failed(directory: RunDirectory) -> str:
    status = directory.read_status()
    reason = f" ({status['reason']})" if status.get("reason") else ""
    return f"{status['state']} at step {status['step']}{reason}"


def _is_same_run(directory: RunDirectory, saved: DictConfig, wanted: DictConfig) -> None:
    before, now = identity(saved), identity(wanted)
    other = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
    if {"seed", "model.block_size"} & set(other):  # data has them by interpolation
        other = [key for key in other if key not in ("data.seed", "data.block_size")]
    if other:
        shown = ", ".join(f"{key}={before.get(key)} there and {now.get(key)} here" for key in other[:3])
        more = f", and {len(other) - 3} more" if len(other) > 3 else ""
        raise UserError(
            f"{directory.path} holds another run: {shown}{more}. Give this one another name=, or remove that one"
        )


def _is_same_text(directory: RunDirectory, wanted: DictConfig) -> None:
    """A finished run on a text that has been changed since is not this run."""
    if (path := wanted.data.get("path")) is None:
        return
    from chargpt.data.corpus import TextFiles

    digest = hashlib.sha256(TextFiles(path).read().encode()).hexdigest()
    before = json.loads(directory.metrics.read_text())["corpus_sha256"]
    if digest != before:
        raise UserError(
            f"{directory.path} was trained on another text: corpus sha256 {before[:12]}..., now {digest[:12]}... "
            f"Give this run another name=..., or remove that one"
        )


def _is_extended(directory: RunDirectory, saved: DictConfig, wanted: DictConfig) -> bool:
    """Whether a finished run is asked to train on: for more steps, or for more time."""
    before, now = _run_length(saved), _run_length(wanted)
    for key, end in now.items():
        if end < before[key]:
            raise UserError(
                f"{directory.path} was planned for trainer.{key}={saved[key]}: trainer.{key}={wanted[key]} would "
                f"be another run. Raise it, or give this run another name=..."
            )
    return before != now


def _run_length(trainer: DictConfig) -> dict[str, float]:
    steps = trainer.max_steps if trainer.max_steps != -1 else math.inf
    return {"max_steps": steps, "max_time": parse_duration(trainer.max_time) or math.inf}


def run_directory_of(resume: str) -> Path:
    """The run directory that `resume=RUN` names, by itself or by one of its checkpoints."""
    path = resolve_path("resume", resume)
    return path.parent.parent if path.is_file() else path
