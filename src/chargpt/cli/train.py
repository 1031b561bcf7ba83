"""train.py: decides whether to start, resume or skip a run, locks its directory and starts its processes.

This module does not import torch, so that a run that is already finished is reported at once.
"""

import logging
import os
import sys
from pathlib import Path
from typing import Any, cast

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from chargpt.cli.launcher import WorkerGroup, block_signals, unblock_signals
from chargpt.config.compose import add_task_overrides, has_explicit_run_dir, set_output_dir, task_overrides
from chargpt.config.raw_values import quote_value
from chargpt.distributed.env import (
    LOCK_FD_ENV,
    STOP_SIGNALS,
    defer_stop,
    exit_with_parent,
    get_rank,
    launched_as_rank,
    num_processes,
    received_signals,
    request_stop,
    set_handlers,
)
from chargpt.errors import ExitCode, UserError
from chargpt.invocation import command_line, program_name
from chargpt.runs import auto_resume, lock
from chargpt.runs.directory import RunDirectory
from chargpt.runs.latest import find_run
from chargpt.runs.reproduce import original_run
from chargpt.sweeps import naming  # noqa: F401 - registers the resolver of hydra.sweep.subdir

log = logging.getLogger(__name__)


class RunEnded(SystemExit):
    """The run did not finish, and this has been reported: a rank has failed, or an earlier command.

    Args:
        code: the exit code.
        directory: that of the run.
        reason: one line; by default that in status.json.
    """

    def __init__(self, code: int, directory: RunDirectory, reason: str = ""):
        super().__init__(code)
        status = directory.read_status()
        self.directory, self.state, self.reason = directory.path, status["state"], reason or status["reason"]


def train(config: DictConfig) -> RunDirectory:
    """Trains in this process, or in one process per device.

    Returns:
        The directory of the run.

    Raises:
        UserError, Interrupted, DivergenceError: as `chargpt.training.loop.train`.
        RunEnded: a rank started by this process has failed or was interrupted, or `resume=auto` finds a failed run.
    """
    if LOCK_FD_ENV in os.environ:  # a rank started by `WorkerGroup`
        exit_with_parent()
        directory = RunDirectory(HydraConfig.get().run.dir)
        _train_in_process(config, directory)
        return directory
    repeated = [setting for setting in ("resume", "rerun") if config[setting] in ("latest", "")]
    for setting in repeated:
        config[setting] = str(find_run(setting, config[setting]))
    is_rank_zero = get_rank() == 0  # other ranks (of torchrun or srun) decide alike, without writing
    original = original_run(config.rerun, config.resume)
    directory = RunDirectory(_resolve_run_dir(config, original))
    if config.resume != "never":
        directory.check_links()
    # Overrides for the ranks: the repeated run; and the length of this command, also where it is that of the recipe.
    overrides = [f"rerun={quote_value(config.rerun)}"] if "rerun" in repeated else []
    try:
        if config.resume == "auto":
            if not _should_train(config, directory, is_rank_zero):
                return directory
            if config.resume != "never":
                lengths = auto_resume.changed_lengths(config, directory)
                add_task_overrides(lengths)
                overrides += lengths
        elif config.resume != "never" and is_rank_zero and directory.path.is_dir():
            lock.acquire(directory.path)
        claim = is_rank_zero and config.resume == "never"
        count = 1 if launched_as_rank() else _num_workers(config, original or directory)
        if count == 1:
            _train_in_process(config, directory, claim)
        else:
            _train_in_workers(count, config.resume, directory, overrides)
    except BaseException as error:
        if isinstance(error, UserError):
            lock.release_and_remove_all()
        directory.remove_if_unused()
        raise
    finally:
        lock.release_all()
    return directory


def _resolve_run_dir(config: DictConfig, original: RunDirectory | None) -> Path:
    """The directory of the run; `original` is the run that is repeated.

    Raises:
        UserError: hydra.run.dir is not the directory of the resumed run.
    """
    settings = HydraConfig.get()
    planned = Path(settings.run.dir)
    if config.resume not in ("never", "auto"):
        directory = auto_resume.run_directory_of(config.resume)
        if has_explicit_run_dir() and planned.resolve() != directory.resolve():
            raise UserError(f"resume={directory} continues in its own directory: remove hydra.run.dir")
        return directory
    if has_explicit_run_dir():
        return planned
    if original:  # in the folder of the same name
        saved = original.read_config()
        assert saved is not None  # `original_run` has read it
        return planned.parent.with_name(str(saved.name)) / planned.name
    if config.resume == "auto":  # a function of the overrides
        return Path(settings.sweep.dir) / settings.sweep.subdir
    return planned


def _should_train(config: DictConfig, directory: RunDirectory, is_rank_zero: bool) -> bool:
    """Whether to train with `resume=auto`; sets `config.resume` to the directory or to "never"."""
    decision = (auto_resume.resolve if is_rank_zero else auto_resume.inspect)(config, directory)
    if decision in (auto_resume.Decision.SKIP_FINISHED, auto_resume.Decision.SKIP_FAILED):
        reason = auto_resume.describe(directory, decision)
        log.info("%s", reason)
        if code := auto_resume.exit_code(directory, decision):
            raise RunEnded(code, directory, reason)
        return False
    config.resume = str(directory.path) if decision == auto_resume.Decision.RESUME else "never"
    return True


def _claim_directory(directory: RunDirectory) -> None:
    """Creates and locks the directory of a new run. Call it before the path is used: `claim` may change it.

    Raises:
        UserError: the directory belongs to another run.
    """
    if lock.is_held_here(directory.path):
        return
    directory.claim(has_explicit_run_dir())
    lock.acquire(directory.path)
    directory.check_empty()  # another process may have finished a run there before the lock was acquired


def _train_in_process(config: DictConfig, directory: RunDirectory, claim: bool = False) -> None:
    """Trains in this process.

    Args:
        claim: whether to create and lock the directory first.
    """
    handlers = set_handlers(dict.fromkeys(STOP_SIGNALS, defer_stop))
    try:
        unblock_signals()
        if claim:
            _claim_directory(directory)
        set_output_dir(directory.path)
        settings = cast(dict[str, Any], OmegaConf.to_container(config, resolve=True))  # of a DictConfig, a dict
        from chargpt.training.loop import train as train_run  # noqa: PLC0415 - torch takes seconds to import

        set_handlers(dict.fromkeys(STOP_SIGNALS, request_stop))  # until training installs its own
        if received_signals:
            raise KeyboardInterrupt
        train_run(settings, directory)
    finally:
        set_handlers(handlers)
        received_signals.clear()


def _num_workers(config: DictConfig, directory: RunDirectory) -> int:
    """The number of processes to start on this machine; by default that of the resumed or repeated run."""
    settings: Any = config.trainer
    keys = {override.lstrip("+").partition("=")[0] for override in task_overrides()}
    saved = (config.resume != "never" or config.rerun) and directory.read_config()
    if saved and not {"trainer", "trainer.devices"} & keys:
        settings = saved.trainer
    if settings.num_nodes > 1:
        per_node = num_processes(settings.devices) or "gpu"
        command = f"torchrun --nnodes={settings.num_nodes} --nproc-per-node={per_node} --rdzv-backend=c10d"
        raise UserError(
            f"trainer.num_nodes={settings.num_nodes}: training on several nodes requires torchrun or srun. "
            f"Run on each node: {command} --rdzv-endpoint=FIRST_NODE:29500 train.py ... Or use trainer.num_nodes=1"
        )
    if (count := num_processes(settings.devices)) is not None:
        return max(1, count)  # Lightning reports devices=0
    if settings.accelerator not in ("auto", "gpu", "cuda"):
        return 1
    import torch  # noqa: PLC0415 - takes seconds to import

    return max(1, torch.cuda.device_count())


def _train_in_workers(count: int, resume: str, directory: RunDirectory, overrides: list[str]) -> None:
    """Starts the ranks and waits for them.

    Raises:
        UserError: a rank was refused.
        RunEnded: a rank has failed or was interrupted.
    """
    with block_signals():
        if resume == "never":
            _claim_directory(directory)
        ranks = WorkerGroup(count, resume, directory, overrides)
    code = ranks.wait()
    if code in (ExitCode.USER_ERROR, ExitCode.INTERRUPTED):  # then training may not have started
        directory.remove_if_unused()
    if code == ExitCode.DONE:
        return
    if code == ExitCode.USER_ERROR and ranks.user_error:
        raise UserError(ranks.user_error)
    status = directory.read_status()
    if code == ExitCode.INTERRUPTED and status["state"] == "running":  # during start-up, or by a second signal
        reason = "a second signal" if status["step"] else "before its first step"
        directory.write_status("interrupted", status["step"], reason)
        command = command_line("train", f"resume={directory.path}")
        sys.stderr.write(f"{program_name()}: interrupted. Resume with: {command}\n")
    if code == ExitCode.FAILED and (reason := ranks.first_failure()):
        directory.write_status("failed", status["step"], reason)
        sys.stderr.write(f"{program_name()}: {reason}. The logs are in {directory.path}\n")
    raise RunEnded(code, directory)
