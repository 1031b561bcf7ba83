"""How train.py begins: whether there is anything to do, under which lock, and in how many processes.

None of it needs torch, so that a run that is finished already is told in a moment.
"""

import logging
import os
import shlex
import signal
import sys
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from chargpt.cli.launcher import WorkerGroup, block_signals, unblock_signals
from chargpt.config.compose import has_explicit_run_dir, set_output_dir, task_overrides
from chargpt.distributed.env import (
    LOCK_FD_ENV,
    exit_with_parent,
    get_rank,
    launched_as_rank,
    num_processes,
    received_signals,
    request_stop,
)
from chargpt.distributed.slurm import PREEMPTION_SIGNAL
from chargpt.errors import ExitCode, UserError
from chargpt.runs import auto_resume, lock
from chargpt.runs.directory import RunDirectory
from chargpt.runs.reproduce import original_run
from chargpt.sweeps import naming  # noqa: F401 - registers the resolver of hydra.sweep.subdir

MAX_DEVICES = 1024  # of one machine

log = logging.getLogger(__name__)


def train(config: DictConfig) -> None:
    """Trains what the config says: here, or in a process for each device.

    Raises:
        UserError, Interrupted, DivergenceError: as `chargpt.training.loop.train`.
        SystemExit: ranks that were started here ended otherwise than well.
    """
    if LOCK_FD_ENV in os.environ:  # a rank that was started here
        exit_with_parent()
        _train_in_process(config, RunDirectory(HydraConfig.get().run.dir))
        return
    first = get_rank() == 0  # the others, of torchrun or srun, see the same and touch nothing
    repeated = original_run(config.rerun, config.resume)
    directory = RunDirectory(_resolve_run_dir(config, repeated))
    try:
        if config.resume == "auto":
            if not _should_train(config, directory, first):
                return
        elif config.resume != "never" and first and directory.path.is_dir():
            lock.acquire(directory.path)
        claim = first and config.resume == "never"
        count = 1 if launched_as_rank() else _num_workers(config, repeated or directory)
        if count == 1:
            _train_in_process(config, directory, claim)
        elif code := _train_in_workers(count, config.resume, directory):
            raise SystemExit(code)
    except BaseException as error:
        if isinstance(error, UserError):
            lock.release_and_remove_all()
        directory.remove_if_unused()
        raise
    finally:
        lock.release_all()


def _resolve_run_dir(config: DictConfig, repeated: RunDirectory | None) -> Path:
    """Where the run is to live.

    Raises:
        UserError: a run that goes on in its own directory, and another directory for it.
    """
    settings = HydraConfig.get()
    planned = Path(settings.run.dir)
    if config.resume not in ("never", "auto"):
        found = auto_resume.run_directory_of(config.resume)
        if has_explicit_run_dir() and planned.resolve() != found.resolve():
            raise UserError(f"resume={found} goes on in that directory: leave hydra.run.dir out")
        return found
    if has_explicit_run_dir():
        return planned
    if repeated:  # under the name that the first one had
        return planned.parent.with_name(str(repeated.read_config().name)) / planned.name
    if config.resume == "auto":  # the same command finds the same place
        return Path(settings.sweep.dir) / settings.sweep.subdir
    return planned


def _should_train(config: DictConfig, directory: RunDirectory, first: bool) -> bool:
    """Decides `resume=auto`, and sets `config.resume` to what it means here."""
    decision = (auto_resume.resolve if first else auto_resume.inspect)(config, directory)
    if decision in (auto_resume.Decision.SKIP_FINISHED, auto_resume.Decision.SKIP_FAILED):
        log.info("%s", auto_resume.describe(directory, decision))
        if code := auto_resume.exit_code(directory, decision):
            raise SystemExit(code)
        return False
    config.resume = str(directory.path) if decision == auto_resume.Decision.RESUME else "never"
    return True


def _claim_directory(directory: RunDirectory) -> None:
    """Makes the directory this run's alone, before anything reads its name. Nothing happens where that is done.

    Raises:
        UserError: it is another run's.
    """
    if lock.is_held_here(directory.path):
        return
    directory.claim(has_explicit_run_dir())
    lock.acquire(directory.path)
    directory.check_empty()  # another process may have finished a run there before this one got the lock


def _train_in_process(config: DictConfig, directory: RunDirectory, claim: bool = False) -> None:
    """Trains in this process.

    Args:
        claim: whether the directory is to be made this run's first.
    """
    # Until the run is under way and saves itself.
    before = {
        number: signal.signal(number, request_stop) for number in (signal.SIGINT, signal.SIGTERM, PREEMPTION_SIGNAL)
    }
    try:
        unblock_signals()
        if claim:
            _claim_directory(directory)
        set_output_dir(directory.path)
        settings = OmegaConf.to_container(config, resolve=True)
        from chargpt.training.loop import train as train_run  # torch and Lightning take seconds

        train_run(settings, directory)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        received_signals.clear()


def _num_workers(config: DictConfig, directory: RunDirectory) -> int:
    """How many processes the run wants on this machine; what the run in `directory` had, if there is one."""
    settings: Any = config.trainer
    words = [word.lstrip("+").partition("=")[0] for word in task_overrides()]
    saved = (config.resume != "never" or config.rerun) and directory.read_config()
    if saved and not {"trainer", "trainer.devices"} & set(words):
        settings = saved.trainer
    if settings.num_nodes > 1:
        each = num_processes(settings.devices) or "gpu"
        typed = f"torchrun --nnodes={settings.num_nodes} --nproc-per-node={each} --rdzv-backend=c10d"
        raise UserError(
            f"trainer.num_nodes={settings.num_nodes}: torchrun or srun starts the processes of several nodes. "
            f"Type on each: {typed} --rdzv-endpoint=FIRST_NODE:29500 train.py ... Or take trainer.num_nodes=1"
        )
    if (count := num_processes(settings.devices)) is not None:
        if count > MAX_DEVICES:
            raise UserError(f"trainer.devices={count}: a machine has no more than {MAX_DEVICES} of them")
        return max(1, count)  # what none means, Lightning says
    if settings.accelerator not in ("auto", "gpu", "cuda"):
        return 1
    import torch

    return max(1, torch.cuda.device_count())


def _train_in_workers(count: int, resume: str, directory: RunDirectory) -> int:
    """Starts the ranks, waits for them; the exit code of the run."""
    with block_signals():
        if resume == "never":
            _claim_directory(directory)
        ranks = WorkerGroup(count, resume, directory)
    code = ranks.wait()
    if code in (ExitCode.USER_ERROR, ExitCode.INTERRUPTED):  # where nothing has begun, nothing stays
        directory.remove_if_unused()
    status = directory.read_status()
    if code == ExitCode.INTERRUPTED and status["state"] == "running":  # in its first moments, or by a second signal
        reason = "a second signal" if status["step"] else "before its first step"
        directory.write_status("interrupted", status["step"], reason)
        word = shlex.quote(f"resume={directory.path}")
        sys.stderr.write(f"train.py: interrupted. Go on with: python train.py {word}\n")
    if code == ExitCode.FAILED and (reason := ranks.first_failure()):
        directory.write_status("failed", status["step"], reason)
        sys.stderr.write(f"train.py: {reason}. The logs are in {directory.path}\n")
    return code
