"""What a run goes on from: the newest whole checkpoint of its directory."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from chargpt.checkpoint import torch_file
from chargpt.config.instantiate import CONSTRUCTOR_ERRORS
from chargpt.errors import UserError
from chargpt.inference.pretrained import find_checkpoint
from chargpt.optim.state_check import check_optimizer_state
from chargpt.runs.directory import RunDirectory
from chargpt.training.callbacks.metrics import MetricsCallback
from chargpt.training.callbacks.timer import TrainingTimer
from chargpt.training.setup import Run
from chargpt.utils.duration import parse_duration

log = logging.getLogger(__name__)


def find_state(resume: Path) -> tuple[RunDirectory, Path | None, dict[str, Any] | None]:
    """The run that `resume=` names, the checkpoint to go on from, and the content of it.

    From a damaged `last.ckpt` it falls back to the one before it, and from that to the best. A run that was cut
    off before its first checkpoint has none.

    Raises:
        UserError: there is no such run, or nothing whole in it; or the file that was named is damaged.
    """
    directory = RunDirectory(resume)
    begun = directory.status_file.exists() and directory.read_config()
    there = [path for path in (directory.last, directory.previous, directory.best) if path.exists()]
    if begun and not there:
        return directory, None, None
    if not there:
        checkpoint = find_checkpoint(resume)  # a file, or nothing
        if checkpoint.parent.name != "checkpoints":
            raise UserError(f"resume={checkpoint} is not in a run directory: name the run, resume=outputs/...")
        return RunDirectory(checkpoint.parent.parent), checkpoint, torch_file.read(checkpoint)
    for checkpoint in there[:-1]:
        try:
            return directory, checkpoint, torch_file.read(checkpoint)
        except UserError as mistake:
            log.warning("%s. Trying the one before it", mistake)
    return directory, there[-1], torch_file.read(there[-1])


@contextmanager
def run_state(checkpoint: Path) -> Iterator[None]:
    """Where what a checkpoint says of the run is used: a stranger's may say anything. Raises `UserError` for it."""
    try:
        yield
    except CONSTRUCTOR_ERRORS as error:
        if isinstance(error, UserError):
            raise
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise UserError(f"{checkpoint} has no state that a run can go on from ({reason})") from error


def best_is_intact(directory: RunDirectory, progress: dict[str, Any]) -> bool:
    """Whether the best checkpoint by the time of `progress` is there and whole, or is about to be made of it."""
    with run_state(directory.last):
        best = MetricsCallback.best_step_in(progress)
    if best in (0, progress["global_step"]):  # there is none yet, or it is made of this one
        return True
    try:
        torch_file.read(directory.best)
    except UserError:
        return False
    return True


def check_state(run: Run, progress: dict[str, Any]) -> None:
    """That the run can go on from `progress`: its weights fit, and there is something left to do.

    Raises:
        UserError: says why not.
    """
    _check_weights(run, progress)
    with run_state(run.origin.checkpoint):
        _check_progress(run, progress)


def _check_progress(run: Run, progress: dict[str, Any]) -> None:
    for key in ("optimizer_states", "lr_schedulers"):
        if len(progress[key]) != 1:
            raise ValueError(f"it has {len(progress[key])} {key}")
    check_optimizer_state(progress["optimizer_states"][0], run.module.optimizer)
    _check_schedule(progress["lr_schedulers"][0], run.module.optimizer)
    batches = progress.get("batches", 0)
    if not isinstance(batches, int) or batches < 0:
        raise ValueError(f"it has trained on {batches!r} batches")
    step, end = progress["global_step"], run.trainer.max_steps
    if end != -1 and (step > end or (step == end and run.directory.metrics.exists())):
        raise UserError(
            f"{run.directory.path} has already done {step} steps of trainer.max_steps={end}: to train it "
            f"further, raise it: resume={run.directory.path} trainer.max_steps={2 * step}"
        )
    planned = progress["chargpt"]["config"]["trainer"]["max_steps"]
    if -1 != end < planned:
        raise UserError(
            f"{run.directory.path} was planned for {planned} steps: trainer.max_steps={end} would be another run. "
            f"It may be raised, or left out"
        )
    budget = parse_duration(run.config["trainer"]["max_time"])
    used = TrainingTimer.train_seconds_in(progress)
    if budget is not None and used >= budget and run.directory.metrics.exists():
        raise UserError(
            f"{run.directory.path} has used up its trainer.max_time={run.config['trainer']['max_time']}: to train "
            f"it further, raise it: trainer.max_time=..."
        )
    before = progress["chargpt"]["devices"]
    if before != run.trainer.world_size:
        log.info(
            "on %d devices instead of %d: the same data, but not the same to the last bit",
            run.trainer.world_size,
            before,
        )


def _check_schedule(saved: dict[str, Any], optimizer: torch.optim.Optimizer) -> None:
    rates = saved["base_lrs"]
    if len(rates) != len(optimizer.param_groups) or not all(isinstance(rate, int | float) for rate in rates):
        raise ValueError(f"its learning rates are {rates!r}")
    if not isinstance(saved["last_epoch"], int):
        raise ValueError("its schedule has no step")


def _check_weights(run: Run, progress: dict[str, Any]) -> None:
    try:
        run.module.load_state_dict(progress["state_dict"])
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{run.origin.checkpoint}: its weights do not fit its own config: {reason}") from error
