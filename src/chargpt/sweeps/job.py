"""One job of a sweep: `python train.py OVERRIDES` in a child process.

Jobs share no state, whatever the launcher, and the process that waits for a job does not import torch.
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

from chargpt.config.compose import SEARCHPATH, packages_of, task_overrides
from chargpt.config.raw_values import quote_value
from chargpt.distributed.env import (
    ERROR_PIPE_ENV,
    PARENT_PID_ENV,
    SWEEP_ENV,
    forwarded_signals,
    read_report,
    set_handlers,
)
from chargpt.errors import ExitCode, UserError
from chargpt.invocation import child_command, program_name
from chargpt.runs import auto_resume
from chargpt.runs.directory import RunDirectory
from chargpt.sweeps import naming  # noqa: F401 - registers its resolver in the process where a launcher runs the job

log = logging.getLogger(__name__)

SAFE_PATH_ENV = "PYTHONSAFEPATH"  # if not empty, the start directory is not on the `sys.path` of Python processes
SEQUENTIAL_LAUNCHER = "BasicLauncher"  # Hydra's default; only its jobs print to the terminal


class Job:
    """Hydra's task function in a sweep. It can be pickled, for launchers that run it in another process.

    Args:
        flags: Hydra's flags for each job.
    """

    def __init__(self, flags: list[str]):
        self._program, self._command = program_name(), [*child_command(), *flags]
        self._safe_path = os.environ.get(SAFE_PATH_ENV, "")  # `sweep` changes it for the launcher

    def __call__(self, config: DictConfig) -> dict[str, Any]:
        """Runs the job, unless its run is already done.

        Returns:
            `directory` (the run directory), `code` (the exit code), `metrics` (metrics.json, None without one),
            `reason` (the user error of a job that could not start, else empty) and `packages` (those whose code the
            run uses).
        """
        settings = HydraConfig.get()
        sequential = settings.launcher._target_.endswith(SEQUENTIAL_LAUNCHER)
        folder, cwd = Path(settings.runtime.output_dir), Path.cwd()
        if sequential and folder.is_relative_to(cwd):  # for shorter messages; other launchers may change cwd
            folder = folder.relative_to(cwd)
        directory = RunDirectory(folder)
        code, reason = self._skip(config, directory)
        if code is None:
            searchpath = [override for override in settings.overrides.hydra if override.startswith(f"{SEARCHPATH}=")]
            code, reason = self._run([*searchpath, *task_overrides()], directory, sequential)
        if code == ExitCode.INTERRUPTED and sequential:
            raise SystemExit(ExitCode.INTERRUPTED)  # ends the sweep; Hydra would catch an Exception and continue
        directory.new = True  # Hydra has created it if it did not exist
        directory.remove_if_unused()
        result = {"directory": str(directory.path), "code": code, "metrics": None, "reason": reason}
        result["packages"] = packages_of(config)
        with contextlib.suppress(OSError, ValueError):
            if code == ExitCode.DONE:
                result["metrics"] = json.loads(directory.metrics.read_text())
        return result

    def _skip(self, config: DictConfig, directory: RunDirectory) -> tuple[int | None, str]:
        """The exit code of a job that is skipped or refused, None for one that must run; the reason of a refusal."""
        if config.resume != "auto" or "optimizer" not in config:  # the job itself adds the default recipe
            return None, ""
        try:
            decision = auto_resume.inspect(config, directory)
        except UserError as error:
            sys.stderr.write(f"{self._program}: {error}\n")
            return ExitCode.USER_ERROR, str(error)
        if decision not in (auto_resume.Decision.SKIP_FINISHED, auto_resume.Decision.SKIP_FAILED):
            return None, ""
        log.info("%s", auto_resume.describe(directory, decision))
        return auto_resume.exit_code(directory, decision), ""

    def _run(self, overrides: list[str], directory: RunDirectory, sequential: bool) -> tuple[int, str]:
        command = [*self._command, *overrides, f"hydra.run.dir={quote_value(str(directory.path))}"]
        read_end, write_end = os.pipe()
        environment = os.environ | {PARENT_PID_ENV: str(os.getpid()), SWEEP_ENV: "1", ERROR_PIPE_ENV: str(write_end)}
        environment[SAFE_PATH_ENV] = self._safe_path
        output = contextlib.nullcontext() if sequential else (directory.path / "job.log").open("ab")
        with output as file:
            # A separate process group, so that the job receives each signal once, forwarded by this process: before a
            # preemption, Slurm signals the whole process group of the launcher.
            process = subprocess.Popen(
                command, env=environment, stdout=file, stderr=file, process_group=0, pass_fds=[write_end]
            )
        os.close(write_end)
        received: list[int] = []

        def forward(number: int, frame: FrameType | None) -> None:
            received.append(number)
            process.send_signal(signal.SIGTERM if number == signal.SIGHUP else number)

        # Not in the main thread, the launcher handles signals itself.
        handlers = set_handlers(dict.fromkeys(forwarded_signals(), forward))
        try:
            code = process.wait()
        except BaseException:  # preemption: raised by the launcher's signal handler
            process.terminate()
            process.wait()
            raise
        finally:
            set_handlers(handlers)
            reason = read_report(read_end)
        if received and code != ExitCode.DONE:  # even if the signal killed it before it had installed its handlers
            code = ExitCode.INTERRUPTED
        return code, reason if code == ExitCode.USER_ERROR else ""
