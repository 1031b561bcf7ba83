"""One job of a sweep: the plain run that one could have typed, in a process of its own.

So no job leaves anything to the next, whatever launcher it runs under, and the process that waits for it needs no
torch.
"""

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from chargpt.config.entry import task_words
from chargpt.errors import DONE, INTERRUPTED, MISTAKE, Mistake
from chargpt.rank import STARTER
from chargpt.sweeps import naming  # noqa: F401 - its resolver is needed where a launcher runs the job
from chargpt.training import home
from chargpt.training.run_directory import RunDirectory

log = logging.getLogger(__name__)

IN_PROCESS = "BasicLauncher"  # Hydra's own, which runs one job after the other: each may speak to the terminal


class Job:
    """Hydra's task function in a sweep; it can be pickled, for launchers that run it elsewhere.

    Args:
        script: `train.py`.
        flags: words of Hydra's for each job, such as `--config-dir`.
    """

    def __init__(self, script: Path, flags: list[str]):
        self._command = [sys.executable, str(script), *flags]

    def __call__(self, config: DictConfig) -> dict[str, Any]:
        """Runs the job, unless it is done already.

        Returns:
            `home` (its directory), `code` (its exit code) and `loss` (its validation loss, None without one).
        """
        settings = HydraConfig.get()
        alone = settings.launcher._target_.endswith(IN_PROCESS)
        folder = Path(settings.runtime.output_dir)
        if alone and folder.is_relative_to(
            Path.cwd()
        ):  # shorter to read; elsewhere the job may have another folder
            folder = folder.relative_to(Path.cwd())
        directory = RunDirectory(folder)
        code = self._already(config, directory)
        if code is None:
            code = self._run(task_words(), directory, alone)
        if code == INTERRUPTED and alone:
            raise SystemExit(INTERRUPTED)  # which ends the sweep, where an exception would only end the job
        directory.abandon()
        with contextlib.suppress(OSError, ValueError, KeyError):
            if code == DONE:
                loss = json.loads(directory.metrics.read_text())["val_loss"]
                return {"home": str(directory.path), "code": code, "loss": loss}
        return {"home": str(directory.path), "code": code, "loss": None}

    @staticmethod
    def _already(config: DictConfig, directory: RunDirectory) -> int | None:
        """The exit code of a job that need not be run; None if it must be."""
        if config.resume != "auto":
            return None
        try:
            verdict = home.look(config, directory)
        except Mistake as mistake:
            sys.stderr.write(f"train.py: {mistake}\n")
            return MISTAKE
        if verdict not in (home.DONE, home.ENDED):
            return None
        log.info("%s", home.told(directory, verdict))
        return home.exit_code(directory, verdict)

    def _run(self, overrides: list[str], directory: RunDirectory, alone: bool) -> int:
        command = [*self._command, *overrides, f'hydra.run.dir="{directory.path}"']
        output = contextlib.nullcontext() if alone else (directory.path / "job.log").open("ab")
        with output as file:
            environment = os.environ | {STARTER: str(os.getpid())}
            # Under a launcher it has a process group of its own: signals meant for the launcher's process (Slurm's
            # before a preemption) go to the whole group of that, and the job has to be told by a signal it knows.
            group = None if alone else 0
            process = subprocess.Popen(command, env=environment, stdout=file, stderr=file, process_group=group)
        before = None
        with contextlib.suppress(ValueError):  # not in the main thread: then the launcher has signals of its own
            before = signal.signal(signal.SIGTERM, lambda *_: process.terminate())
        try:
            return process.wait()
        except KeyboardInterrupt:  # the job got the same signal: let it save itself
            return process.wait()
        except BaseException:  # preempted: the launcher has thrown its own
            process.terminate()
            process.wait()
            raise
        finally:
            if before is not None:
                signal.signal(signal.SIGTERM, before)
