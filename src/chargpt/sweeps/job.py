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
from types import FrameType
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from chargpt.config.compose import SEARCHPATH, task_overrides
from chargpt.config.overrides import quote_value
from chargpt.distributed.env import ERROR_PIPE_ENV, PARENT_PID_ENV, SWEEP_ENV, forwarded_signals
from chargpt.errors import ExitCode, UserError
from chargpt.runs import auto_resume
from chargpt.runs.directory import RunDirectory
from chargpt.sweeps import naming  # noqa: F401 - its resolver is needed where a launcher runs the job

log = logging.getLogger(__name__)

IN_PROCESS = "BasicLauncher"  # Hydra's own, which runs one job after the other: each may speak to the terminal


class Job:
    """Hydra's task function in a sweep; it can be pickled, for launchers that run it elsewhere.

    Args:
        script: `train.py`.
        flags: flags of Hydra's for each job.
    """

    def __init__(self, script: Path, flags: list[str]):
        self._command = [sys.executable, str(script), *flags]

    def __call__(self, config: DictConfig) -> dict[str, Any]:
        """Runs the job, unless it is done already.

        Returns:
            `home` (its directory), `code` (its exit code), `metrics` (its metrics.json, None without one) and
            `reason` (why it was refused, if it was).
        """
        settings = HydraConfig.get()
        alone = settings.launcher._target_.endswith(IN_PROCESS)
        folder, here = Path(settings.runtime.output_dir), Path.cwd()
        if alone and folder.is_relative_to(here):  # shorter to read; elsewhere it may start from another folder
            folder = folder.relative_to(here)
        directory = RunDirectory(folder)
        code, reason = self._already(config, directory)
        if code is None:
            folders = [word for word in settings.overrides.hydra if word.startswith(f"{SEARCHPATH}=")]
            code, reason = self._run([*folders, *task_overrides()], directory, alone)
        if code == ExitCode.INTERRUPTED and alone:
            raise SystemExit(ExitCode.INTERRUPTED)  # which ends the sweep, where an exception would only end the job
        directory.new = True  # Hydra has made it, if it was not there
        directory.remove_if_unused()
        result = {"home": str(directory.path), "code": code, "metrics": None, "reason": reason}
        with contextlib.suppress(OSError, ValueError):
            if code == ExitCode.DONE:
                result["metrics"] = json.loads(directory.metrics.read_text())
        return result

    @staticmethod
    def _already(config: DictConfig, directory: RunDirectory) -> tuple[int | None, str]:
        """The exit code of a job that need not be run, None if it must be; and why it is refused, if it is."""
        if config.resume != "auto":
            return None, ""
        try:
            decision = auto_resume.inspect(config, directory)
        except UserError as mistake:
            sys.stderr.write(f"train.py: {mistake}\n")
            return ExitCode.USER_ERROR, str(mistake)
        if decision not in (auto_resume.Decision.SKIP_FINISHED, auto_resume.Decision.SKIP_FAILED):
            return None, ""
        log.info("%s", auto_resume.describe(directory, decision))
        return auto_resume.exit_code(directory, decision), ""

    def _run(self, overrides: list[str], directory: RunDirectory, alone: bool) -> tuple[int, str]:
        command = [*self._command, *overrides, f"hydra.run.dir={quote_value(str(directory.path))}"]
        mistakes, told = os.pipe()
        environment = os.environ | {PARENT_PID_ENV: str(os.getpid()), SWEEP_ENV: "1", ERROR_PIPE_ENV: str(told)}
        output = contextlib.nullcontext() if alone else (directory.path / "job.log").open("ab")
        with output as file:
            # A process group of its own: every signal reaches it once, from here. (Slurm's, before a preemption,
            # go to the whole group of the launcher's process.)
            process = subprocess.Popen(
                command, env=environment, stdout=file, stderr=file, process_group=0, pass_fds=[told]
            )
        os.close(told)
        asked: list[int] = []

        def pass_on(number: int, frame: FrameType | None) -> None:
            asked.append(number)
            process.send_signal(signal.SIGTERM if number == signal.SIGHUP else number)

        before = {}
        with contextlib.suppress(ValueError):  # not in the main thread: then the launcher has signals of its own
            before = {number: signal.signal(number, pass_on) for number in forwarded_signals()}
        try:
            code = process.wait()
        except BaseException:  # preempted: the launcher has thrown its own
            process.terminate()
            process.wait()
            raise
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            with os.fdopen(mistakes, "rb") as pipe:
                os.set_blocking(mistakes, False)
                reason = (pipe.read() or b"").decode()
        if asked and code != ExitCode.DONE:  # also where it had no handlers yet
            code = ExitCode.INTERRUPTED
        return code, reason if code == ExitCode.USER_ERROR else ""
