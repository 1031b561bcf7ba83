"""Finds the checkpoint from which a run resumes, and checks that it can be resumed."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from chargpt.checkpoint import torch_file
from chargpt.config.instantiate import CONSTRUCTOR_ERRORS
from chargpt.config.trust import Trust, locate, targets_of
from chargpt.errors import UserError, describe_error
from chargpt.inference.pretrained import find_checkpoint
from chargpt.invocation import command_line
from chargpt.optim.state_check import check_optimizer_state
from chargpt.runs.directory import RunDirectory
from chargpt.runs.retention import check_resumable
from chargpt.training import epochs
from chargpt.training.callbacks.metrics import MetricsCallback
from chargpt.training.callbacks.timer import TrainingTimer
from chargpt.training.setup import Run
from chargpt.utils.duration import parse_duration

log = logging.getLogger(__name__)


def find_state(resume: Path) -> tuple[RunDirectory, Path | None, dict[str, Any] | None]:
    """Finds the run of `resume=` and its newest intact checkpoint.

    If `last.ckpt` is damaged, it falls back to `previous.ckpt`, then to `best.ckpt`.

    Returns:
        The run, and the path and content of the checkpoint; both are None if the run was interrupted before its first
        checkpoint.

    Raises:
        UserError: there is no such run, it has no intact checkpoint, the given file is damaged, or the run is finished
            and has not kept what resuming requires.
    """
    directory = RunDirectory(resume)
    started = directory.status_file.exists() and directory.read_config()
    paths = [path for path in (directory.last, directory.previous, directory.best) if path.exists()]
    check_resumable(directory)
    if started and not paths:
        return directory, None, None
    if not paths:
        path = find_checkpoint(resume)  # raises unless `resume` is a checkpoint file
        if path.parent.name != "checkpoints":
            raise UserError(f"resume={path}: not in a run directory; give the run: resume=outputs/...")
        return RunDirectory(path.parent.parent), path, _read(path)
    for path in paths[:-1]:
        try:
            return directory, path, _read(path)
        except UserError as error:
            log.warning("%s. Trying an earlier checkpoint", error)
    return directory, paths[-1], _read(paths[-1])


def _read(path: Path) -> dict[str, Any]:
    checkpoint = torch_file.read(path)
    if "optimizer_states" not in checkpoint:
        raise UserError(
            f"{path} contains only weights, without the state of the optimizer (checkpoint.keep=weights_only), so no "
            f"run can resume from it; repeat the run: rerun={path.parent.parent}"
        )
    return checkpoint


@contextmanager
def invalid_state_as_user_error(path: Path) -> Iterator[None]:
    """Converts errors in code that uses the content of a checkpoint, which may be an untrusted file, to `UserError`."""
    try:
        yield
    except CONSTRUCTOR_ERRORS as error:
        if isinstance(error, UserError):
            raise
        reason = describe_error(error)
        raise UserError(f"{path}: it contains no state from which a run can resume ({reason})") from error


def best_is_intact(directory: RunDirectory, checkpoint: dict[str, Any], trust: Trust) -> bool:
    """Whether the best checkpoint recorded in `checkpoint` is intact, is `checkpoint` itself, or does not exist yet.

    Raises:
        UserError: its model or tokenizer, of which the run makes its sample in the end, is not trusted.
    """
    with invalid_state_as_user_error(directory.last):
        best = MetricsCallback.best_step_in(checkpoint)
    if best in (0, checkpoint["global_step"]):
        return True
    try:
        best = torch_file.read(directory.best)[torch_file.KEY]
    except UserError:
        return False
    for key, config in {"model": best["config"]["model"], "tokenizer": best["tokenizer"]}.items():
        for target in targets_of(config):
            locate(target, f"{directory.best}: {key}", trust)
    return True


def check_state(run: Run, checkpoint: dict[str, Any]) -> None:
    """Checks that the run can resume from `checkpoint`: its state fits, and the run is not finished.

    Raises:
        UserError: the run cannot be resumed.
    """
    _check_weights(run, checkpoint)
    assert run.origin.checkpoint_path is not None  # the path of `checkpoint`
    with invalid_state_as_user_error(run.origin.checkpoint_path):
        _check_progress(run, checkpoint)


def _check_progress(run: Run, checkpoint: dict[str, Any]) -> None:
    for key in ("optimizer_states", "lr_schedulers"):
        if len(checkpoint[key]) != 1:
            raise ValueError(f"it contains {len(checkpoint[key])} {key}")
    check_optimizer_state(checkpoint["optimizer_states"][0], run.module.optimizer)
    _check_schedule(checkpoint["lr_schedulers"][0], run.module.optimizer)
    batches = checkpoint.get("batches", 0)
    if not isinstance(batches, int) or batches < 0:
        raise ValueError(f"its number of batches is {batches!r}")
    path, step, max_steps = run.directory.path, checkpoint["global_step"], run.trainer.max_steps
    batches = run.data.batches_per_epoch
    length = epochs.length(run.config["trainer"], batches)
    if max_steps != -1 and (step > max_steps or (step == max_steps and run.directory.metrics.exists())):
        name = length.partition("=")[0]
        longer = f"{name}={2 * (run.config['trainer']['max_epochs'] if name == 'trainer.max_epochs' else step)}"
        raise UserError(
            f"{path} has already trained for {step} steps, and {length}. To train longer: "
            f"{command_line('train', f'resume={path}', longer)}"
        )
    planned = epochs.max_steps(checkpoint["chargpt"]["config"]["trainer"], batches)
    if -1 != max_steps < planned:
        raise UserError(
            f"{path} was planned for {planned} steps: {length} would make this a different run; increase it, or leave "
            f"it out"
        )
    budget = parse_duration(run.config["trainer"]["max_time"])
    used = TrainingTimer.train_seconds_in(checkpoint)
    if budget is not None and used >= budget and run.directory.metrics.exists():
        raise UserError(
            f"{path} has already trained for trainer.max_time={run.config['trainer']['max_time']}. To train longer: "
            f"{command_line('train', f'resume={path}', f'trainer.max_time={2 * round(used)}')}"
        )
    saved = checkpoint["chargpt"]["devices"]
    if saved != run.trainer.world_size:
        log.info(
            "resumed on %d devices instead of %d: the data is the same, but results are not bit-identical",
            run.trainer.world_size,
            saved,
        )


def _check_schedule(saved: dict[str, Any], optimizer: torch.optim.Optimizer) -> None:
    rates = saved["base_lrs"]
    if len(rates) != len(optimizer.param_groups) or not all(isinstance(rate, int | float) for rate in rates):
        raise ValueError(f"its base learning rates are {rates!r}")
    if not isinstance(saved["last_epoch"], int):
        raise ValueError("its schedule has no integer step")


def _check_weights(run: Run, checkpoint: dict[str, Any]) -> None:
    try:
        run.module.load_state_dict(checkpoint["state_dict"])
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{run.origin.checkpoint_path}: its weights do not match its config: {reason}") from error
