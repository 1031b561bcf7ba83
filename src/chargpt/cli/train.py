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

from chargpt.cli.launcher import Ranks, held_back, let_through
from chargpt.config.compose import has_explicit_run_dir, set_output_dir, task_overrides
from chargpt.distributed.env import ASKED, OURS, ask_to_stop, die_with_starter, number, processes, started_as_rank
from chargpt.distributed.slurm import WARNING
from chargpt.errors import FAILED, INTERRUPTED, MISTAKE, Mistake
from chargpt.runs import auto_resume, lock
from chargpt.runs.directory import RunDirectory
from chargpt.runs.reproduce import original
from chargpt.sweeps import naming  # noqa: F401 - registers the resolver of hydra.sweep.subdir

MOST_DEVICES = 1024  # of one machine

log = logging.getLogger(__name__)


def train(config: DictConfig) -> None:
    """Trains what the config says: here, or in a process for each device.

    Raises:
        Mistake, Interrupted, Diverged: as `chargpt.training.loop.train`.
        SystemExit: ranks that were started here ended otherwise than well.
    """
    if OURS in os.environ:  # a rank that was started here
        die_with_starter()
        _train_here(config, RunDirectory(HydraConfig.get().run.dir))
        return
    first = number() == 0  # the others, of torchrun or srun, see the same and touch nothing
    repeated = original(config.rerun, config.resume)
    directory = RunDirectory(_place(config, repeated))
    try:
        if config.resume == "auto":
            if not _is_to_be_trained(config, directory, first):
                return
        elif config.resume != "never" and first and directory.path.is_dir():
            lock.hold(directory.path)
        claim = first and config.resume == "never"
        count = 1 if started_as_rank() else _count(config, repeated or directory)
        if count == 1:
            _train_here(config, directory, claim)
        elif code := _train_in_ranks(count, config.resume, directory):
            raise SystemExit(code)
    except BaseException as error:
        if isinstance(error, Mistake):
            lock.undo_all()
        directory.abandon()
        raise
    finally:
        lock.release_all()


def _place(config: DictConfig, repeated: RunDirectory | None) -> Path:
    """Where the run is to live.

    Raises:
        Mistake: a run that goes on in its own directory, and another directory for it.
    """
    settings = HydraConfig.get()
    planned = Path(settings.run.dir)
    if config.resume not in ("never", "auto"):
        found = auto_resume.directory_of(config.resume)
        if has_explicit_run_dir() and planned.resolve() != found.resolve():
            raise Mistake(f"resume={found} goes on in that directory: leave hydra.run.dir out")
        return found
    if has_explicit_run_dir():
        return planned
    if repeated:  # under the name that the first one had
        return planned.parent.with_name(str(repeated.read_config().name)) / planned.name
    if config.resume == "auto":  # the same command finds the same place
        return Path(settings.sweep.dir) / settings.sweep.subdir
    return planned


def _is_to_be_trained(config: DictConfig, directory: RunDirectory, first: bool) -> bool:
    """Decides `resume=auto`, and sets `config.resume` to what it means here."""
    verdict = (auto_resume.settle if first else auto_resume.look)(config, directory)
    if verdict in (auto_resume.DONE, auto_resume.ENDED):
        log.info("%s", auto_resume.told(directory, verdict))
        if code := auto_resume.exit_code(directory, verdict):
            raise SystemExit(code)
        return False
    config.resume = str(directory.path) if verdict == auto_resume.GO_ON else "never"
    return True


def _claim(directory: RunDirectory) -> None:
    """Makes the directory this run's alone, before anything reads its name. Nothing happens where that is done.

    Raises:
        Mistake: it is another run's.
    """
    if lock.holds(directory.path):
        return
    directory.claim(has_explicit_run_dir())
    lock.hold(directory.path)
    directory.check_empty()  # another process may have finished a run there before this one got the lock


def _train_here(config: DictConfig, directory: RunDirectory, claim: bool = False) -> None:
    """Trains in this process.

    Args:
        claim: whether the directory is to be made this run's first.
    """
    # Until the run is under way and saves itself.
    before = {number: signal.signal(number, ask_to_stop) for number in (signal.SIGINT, signal.SIGTERM, WARNING)}
    try:
        let_through()
        if claim:
            _claim(directory)
        set_output_dir(directory.path)
        settings = OmegaConf.to_container(config, resolve=True)
        from chargpt.training.loop import train as train_run  # torch and Lightning take seconds

        train_run(settings, directory)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        ASKED.clear()


def _count(config: DictConfig, directory: RunDirectory) -> int:
    """How many processes the run wants on this machine; what the run in `directory` had, if there is one."""
    settings: Any = config.trainer
    words = [word.lstrip("+").partition("=")[0] for word in task_overrides()]
    saved = (config.resume != "never" or config.rerun) and directory.read_config()
    if saved and not {"trainer", "trainer.devices"} & set(words):
        settings = saved.trainer
    if settings.num_nodes > 1:
        each = processes(settings.devices) or "gpu"
        typed = f"torchrun --nnodes={settings.num_nodes} --nproc-per-node={each} --rdzv-backend=c10d"
        raise Mistake(
            f"trainer.num_nodes={settings.num_nodes}: torchrun or srun starts the processes of several nodes. "
            f"Type on each: {typed} --rdzv-endpoint=FIRST_NODE:29500 train.py ... Or take trainer.num_nodes=1"
        )
    if (count := processes(settings.devices)) is not None:
        if count > MOST_DEVICES:
            raise Mistake(f"trainer.devices={count}: a machine has no more than {MOST_DEVICES} of them")
        return max(1, count)  # what none means, Lightning says
    if settings.accelerator not in ("auto", "gpu", "cuda"):
        return 1
    import torch

    return max(1, torch.cuda.device_count())


def _train_in_ranks(count: int, resume: str, directory: RunDirectory) -> int:
    """Starts the ranks, waits for them; the exit code of the run."""
    with held_back():
        if resume == "never":
            _claim(directory)
        ranks = Ranks(count, resume, directory)
    code = ranks.wait()
    if code in (MISTAKE, INTERRUPTED):  # where nothing has begun, nothing stays
        directory.abandon()
    status = directory.read_status()
    if code == INTERRUPTED and status["state"] == "running":  # in its first moments, or by a second signal
        reason = "a second signal" if status["step"] else "before its first step"
        directory.write_status("interrupted", status["step"], reason)
        word = shlex.quote(f"resume={directory.path}")
        sys.stderr.write(f"train.py: interrupted. Go on with: python train.py {word}\n")
    if code == FAILED and (reason := ranks.cause()):
        directory.write_status("failed", status["step"], reason)
        sys.stderr.write(f"train.py: {reason}. The logs are in {directory.path}\n")
    return code
