"""The Python API of training: `train`, `sweep` and `compose`, in scripts and notebooks.

They take overrides, as the command line does, and raise exceptions where it exits. The state of the process that a
command changes is restored: Hydra's, loggers, signal handlers, environment variables, warning filters.
"""

import contextlib
import json
import logging
import os
import threading
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobRuntime
from hydra.version import VersionBase
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from chargpt.cli import app
from chargpt.cli import train as train_command
from chargpt.config.compose import searchpath
from chargpt.config.overrides import short_error
from chargpt.config.trust import trusted_packages
from chargpt.errors import DivergenceError, ExitCode, Interrupted, TrainingError, UserError
from chargpt.invocation import called_from_python, command_line, config_folder, is_trust, used_packages
from chargpt.runs.discover import common_folder
from chargpt.sweeps.swept_params import ABSENT

if TYPE_CHECKING:
    from chargpt.inference.pretrained import PretrainedModel

_running = threading.Lock()  # Hydra's state is global


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        directory: the run directory.
        trust: the packages whose code the run uses, by the request of this program.
    """

    directory: Path
    trust: tuple[str, ...] = ()

    @property
    def metrics(self) -> dict[str, Any]:
        """The content of metrics.json."""
        return json.loads((self.directory / "metrics.json").read_text())

    def load(self, device: str = "cpu", trust: str | Iterable[str] = ()) -> "PretrainedModel":
        """The trained model: see `chargpt.load`."""
        from chargpt.inference.pretrained import load  # noqa: PLC0415 - torch takes seconds to import

        return load(self.directory, device, [*trusted_packages(trust), *self.trust])


@dataclass(frozen=True)
class SweepTable:
    """The comparison of the runs of a sweep; `pandas.DataFrame(table.rows)` shows it.

    Attributes:
        rows: a dictionary per run, best first: its directory as `run`, `state`, `reason`, the swept settings, and its
            metrics (None where it has none).
        path: the table as a file, sweep.csv.
        trust: the packages whose code the runs use, by the request of this program.
    """

    rows: list[dict[str, Any]]
    path: Path
    trust: tuple[str, ...] = ()

    @property
    def best(self) -> Run:
        """The run with the best score.

        Raises:
            TrainingError: no run has finished.
        """
        for row in self.rows:
            if row["state"] == "finished":
                return Run(row["run"], self.trust)
        raise TrainingError(f"no run of this sweep has finished: see the column reason in {self.path}")


def train(
    overrides: Iterable[str] = (), *, config_dir: str | Path | None = None, trust: str | Iterable[str] = ()
) -> Run:
    """Trains a run as `chargpt train OVERRIDES` does: in this process, or in one process per device.

    With `resume=auto` among the overrides, a repeated call resumes an interrupted run and returns a finished one.

    Args:
        overrides: such as `["model=gpt_nano", "trainer.max_steps=100"]`.
        config_dir: a folder with your own configs.
        trust: packages whose code a resumed or repeated run may use.

    Raises:
        UserError: an invalid request; nothing was started.
        Interrupted: by Ctrl-C or a signal; the run can be resumed.
        DivergenceError: the loss or a weight is NaN or infinite.
        TrainingError: the run has failed for another reason that is not an error in the code.
    """
    with _command(overrides, config_dir, trust) as (prepared, packages):
        config = app.compose_command("train", prepared, _text(config_dir), packages)
        try:
            return Run(train_command.train(config).path.absolute(), used_packages())
        except train_command.RunEnded as error:
            raise _exception(error) from None


def sweep(
    overrides: Iterable[str], *, config_dir: str | Path | None = None, trust: str | Iterable[str] = ()
) -> SweepTable:
    """Runs a sweep as `chargpt train -m OVERRIDES` does, each job in its own process, and compares the runs.

    A repeated call resumes an interrupted sweep. A job that fails does not stop the others: see its row.

    Args:
        overrides, config_dir, trust: as for `train`; a setting may have several values, `model.n_layer=2,4`.

    Raises:
        UserError: an invalid request, or all jobs are refused.
        Interrupted: by Ctrl-C or a signal.
    """
    with _command(overrides, config_dir, trust, sweep=True) as (prepared, packages):
        results, rows = app.run_sweep("train", prepared, packages, [])
        refused = [result for result in results if result["code"] == ExitCode.USER_ERROR]
        if not rows:
            raise UserError(refused[0]["reason"])
        folder = common_folder([Path(r["directory"]) for r in results if r not in refused]).absolute()
        rows = [
            {key: None if value is ABSENT else value for key, value in row.items()} | {"run": folder / row["run"]}
            for row in rows
        ]
        rows += [{"run": Path(r["directory"]).absolute(), "state": "refused", "reason": r["reason"]} for r in refused]
        used = {*packages, *(package for result in results for package in result["packages"])}
        return SweepTable(rows, folder / "sweep.csv", tuple(sorted(used)))


def compose(overrides: Iterable[str] = (), *, config_dir: str | Path | None = None) -> dict[str, Any]:
    """The config of `chargpt train OVERRIDES` as plain data, interpolations resolved.

    Raises:
        UserError: an invalid override, or a setting without a value.
    """
    with _command(overrides, config_dir, ()) as (prepared, packages):
        config = app.compose_command("train", prepared, _text(config_dir), packages)
        settings = cast(dict[str, Any], OmegaConf.to_container(config, resolve=True))  # of a DictConfig, a dict
        return {key: value for key, value in settings.items() if key != "trust"}


@contextlib.contextmanager
def _command(
    overrides: Iterable[str], config_dir: str | Path | None, trust: str | Iterable[str], sweep: bool = False
) -> Iterator[tuple[list[str], tuple[str, ...]]]:
    """Prepares this process for a command, and restores it. Yields the overrides for Hydra, and the packages."""
    if not _running.acquire(blocking=False):
        raise UserError("another chargpt.train, sweep or compose is running in this process: wait for it")
    with contextlib.ExitStack() as stack:
        stack.callback(_running.release)
        typed = [overrides] if isinstance(overrides, str) else list(overrides)
        if flag := next((override for override in typed if override.startswith("-")), None):
            raise UserError(f"{flag}: flags are for the command line; here there are config_dir=..., chargpt.sweep")
        prepared, typed_trust = app.prepare_overrides(typed, sweep)
        packages = tuple(dict.fromkeys((*typed_trust, *trusted_packages(trust))))
        arguments = [override for override in typed if not is_trust(override)]
        arguments += [f"trust=[{','.join(packages)}]"] if packages else []
        arguments += [f"--config-dir={config_dir}"] if config_dir else []
        for context in (called_from_python(arguments), _environment(), _logging(), warnings.catch_warnings()):
            stack.enter_context(context)
        app.limit_openmp_spin()
        stack.enter_context(_hydra())
        try:
            yield [*searchpath(_text(config_dir), prepared), *prepared], packages
        except OmegaConfBaseException as error:  # an interpolation that cannot be resolved
            raise UserError(short_error(error)) from error
        except KeyboardInterrupt:  # before the first step
            raise Interrupted("interrupted") from None


@contextlib.contextmanager
def _hydra() -> Iterator[None]:
    """Hydra's global state for a command; restores that of the program that calls."""
    singletons = (GlobalHydra.instance(), HydraConfig.instance(), JobRuntime.instance(), VersionBase.instance())
    saved = [dict(vars(singleton)) for singleton in singletons]
    GlobalHydra.instance().clear()
    JobRuntime.instance().conf = JobRuntime.instance().conf.copy()
    try:
        with hydra.initialize_config_dir(str(config_folder()), job_name="train", version_base="1.3"):
            yield
    finally:
        GlobalHydra.set_instance(singletons[0])  # Hydra itself restores a copy
        for singleton, state in zip(singletons, saved, strict=True):
            vars(singleton).update(state)


@contextlib.contextmanager
def _environment() -> Iterator[None]:
    """Removes variables that Lightning sets: with them, later child processes would be ranks."""
    names = set(os.environ)
    try:
        yield
    finally:
        for name in os.environ.keys() - names:
            del os.environ[name]


@contextlib.contextmanager
def _logging() -> Iterator[None]:
    """Logs to stderr, unless the program has configured logging."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    logging.basicConfig(format="%(message)s", handlers=[app.StderrHandler()])
    root.setLevel(min(level, logging.INFO))
    try:
        yield
    finally:
        for handler in root.handlers[:]:
            if handler not in handlers:
                root.removeHandler(handler)
        root.setLevel(level)


def _exception(error: train_command.RunEnded) -> Exception:
    if error.code == ExitCode.INTERRUPTED:
        return Interrupted(f"interrupted. Resume with: {command_line('train', f'resume={error.directory}')}")
    return (DivergenceError if error.state == "diverged" else TrainingError)(error.reason)


def _text(path: str | Path | None) -> str | None:
    return None if path is None else str(path)
