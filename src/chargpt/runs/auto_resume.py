"""How a run begins in a directory that may hold one already: afresh, where it stopped, or not at all.

A run's home in a sweep is a function of its overrides, so the same command finds the same place. What stands there
is looked at before anything heavy is imported, and under the directory's lock.
"""

import hashlib
import json
import logging
import math
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from chargpt.config.instantiate import SAVED_SINCE
from chargpt.distributed.env import started_as_rank
from chargpt.errors import DONE as DONE_WELL
from chargpt.errors import FAILED, Mistake
from chargpt.runs import lock
from chargpt.runs.directory import RunDirectory
from chargpt.runs.identity import identity
from chargpt.runs.score import Monitor, score_of
from chargpt.utils.duration import seconds_of
from chargpt.utils.paths import typed_path

log = logging.getLogger(__name__)

NEW, GO_ON, AGAIN, DONE, ENDED = "new", "go on", "again", "done", "ended"


def settle(config: DictConfig, directory: RunDirectory) -> str:
    """Decides `resume=auto` for a directory, under its lock, and prepares the directory for what comes.

    Returns:
        `NEW`, `GO_ON`, `AGAIN`: to be trained, by the holder of the lock. `DONE`, `ENDED`: nothing is to be done.

    Raises:
        Mistake: the directory holds another run.
    """
    directory.new = not directory.path.exists()
    try:
        directory.make_parents()
        directory.path.mkdir(exist_ok=True)
    except OSError as error:
        directory.remove_parents()
        raise Mistake(f"the run directory {directory.path} cannot be made: {error.strerror}") from error
    if lock.is_held(directory.path):
        log.info("%s is being trained by another process: waiting for it", directory.path)
    # Where torchrun or srun has started others, they have looked already: to wait now would leave them waiting.
    lock.hold(directory.path, patience=1.0 if started_as_rank() else float("inf"))
    try:
        verdict = look(config, directory)
    except Mistake:
        lock.release(directory.path)
        directory.abandon()
        raise
    if verdict == AGAIN:
        log.info("%s %s: it starts again", directory.path, _ended(directory))
        directory.clear()
    elif verdict == GO_ON:
        log.info("%s goes on where it stopped", directory.path)
    elif verdict in (DONE, ENDED):
        lock.release(directory.path)
    return verdict


def look(config: DictConfig, directory: RunDirectory) -> str:
    """What `settle` would decide, without touching anything.

    Args:
        config: what this run is to be.
    """
    saved = directory.read_config()
    if saved is None:
        return NEW if not directory.status_file.exists() else AGAIN
    state = directory.read_status()["state"]
    keys = [key for key in {**saved, **dict.fromkeys(SAVED_SINCE)} if key in config]
    wanted = OmegaConf.create(OmegaConf.to_container(OmegaConf.masked_copy(config, keys), resolve=True))
    _same(directory, saved, wanted)
    if directory.metrics.exists():
        _same_text(directory, wanted)
        return GO_ON if _further(directory, saved.trainer, wanted.trainer) else DONE
    if state in ("diverged", "pruned"):
        return ENDED
    # Also one that failed: of a full disk, of a rank that died, or of a part that is mended now.
    return GO_ON if any(path.exists() for path in (directory.last, directory.previous, directory.best)) else AGAIN


def told(directory: RunDirectory, verdict: str) -> str:
    """One line about a run that is not to be trained again."""
    if verdict == DONE:
        metrics = json.loads(directory.metrics.read_text())
        monitor = Monitor.of(metrics)
        return f"{directory.path} is finished already: {monitor.words} {score_of(metrics, monitor):.4f}"
    return f"{directory.path} {_ended(directory)}; remove it to run it again"


def exit_code(directory: RunDirectory, verdict: str) -> int:
    """That of a run that is not to be trained again: as when it ended."""
    diverged = verdict == ENDED and directory.read_status()["state"] != "pruned"
    return FAILED if diverged else DONE_WELL


def _ended(directory: RunDirectory) -> str:
    status = directory.read_status()
    reason = f" ({status['reason']})" if status.get("reason") else ""
    return f"{status['state']} at step {status['step']}{reason}"


def _same(directory: RunDirectory, saved: DictConfig, wanted: DictConfig) -> None:
    before, now = identity(saved), identity(wanted)
    other = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
    if {"seed", "model.block_size"} & set(other):  # data has them by interpolation
        other = [key for key in other if key not in ("data.seed", "data.block_size")]
    if other:
        shown = ", ".join(f"{key}={before.get(key)} there and {now.get(key)} here" for key in other[:3])
        more = f", and {len(other) - 3} more" if len(other) > 3 else ""
        raise Mistake(
            f"{directory.path} holds another run: {shown}{more}. Give this one another name=, or remove that one"
        )


def _same_text(directory: RunDirectory, wanted: DictConfig) -> None:
    """A finished run on a text that has been changed since is not this run."""
    if (path := wanted.data.get("path")) is None:
        return
    from chargpt.data.corpus import TextFiles

    digest = hashlib.sha256(TextFiles(path).read().encode()).hexdigest()
    before = json.loads(directory.metrics.read_text())["corpus_sha256"]
    if digest != before:
        raise Mistake(
            f"{directory.path} was trained on another text: corpus sha256 {before[:12]}..., now {digest[:12]}... "
            f"Give this run another name=..., or remove that one"
        )


def _further(directory: RunDirectory, saved: DictConfig, wanted: DictConfig) -> bool:
    """Whether a finished run is asked to train on: for more steps, or for more time."""
    before, now = _ends(saved), _ends(wanted)
    for key, end in now.items():
        if end < before[key]:
            raise Mistake(
                f"{directory.path} was planned for trainer.{key}={saved[key]}: trainer.{key}={wanted[key]} would "
                f"be another run. Raise it, or give this run another name=..."
            )
    return before != now


def _ends(trainer: DictConfig) -> dict[str, float]:
    steps = trainer.max_steps if trainer.max_steps != -1 else math.inf
    return {"max_steps": steps, "max_time": seconds_of(trainer.max_time) or math.inf}


def directory_of(resume: str) -> Path:
    """The run directory that `resume=RUN` names, by itself or by one of its checkpoints."""
    path = typed_path("resume", resume)
    return path.parent.parent if path.is_file() else path
