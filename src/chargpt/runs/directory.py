"""The run directory: the names of its files, and how they are written (atomically) and read."""

import contextlib
import json
import os
import platform
import re
import shutil
import subprocess
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from chargpt.checkpoint.migrations import migrate, migrate_key, migrate_override
from chargpt.checkpoint.plain_data import find_non_plain
from chargpt.config.instantiate import COMPONENTS, SAVED_KEYS, SAVED_KEYS_SINCE_0_3
from chargpt.errors import UserError
from chargpt.invocation import arguments, command_line, is_trust, program_name
from chargpt.runs import lock
from chargpt.utils.atomic_write import atomic_write_text
from chargpt.utils.processor import processor_name
from chargpt.utils.terminal import without_controls

# What a directory may contain before its run starts: written by the launcher, or by an earlier failed attempt.
ALLOWED_BEFORE_START = {".hydra", lock.NAME, "train.log", "job.log"}
PACKAGE = Path(__file__).parents[1]
EVENT_FILES = "events.out.tfevents.*"  # of TensorBoard
STATES = ("waiting", "running", "interrupted", "failed", "diverged", "pruned", "finished")


class RunDirectory:
    """The files of one run. All other modules get their paths from here.

    Attributes:
        path: the directory; it exists after `claim`.
        new: whether the directory was created for this run.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.checkpoints = self.path / "checkpoints"
        self.last = self.checkpoints / "last.ckpt"
        self.previous = self.checkpoints / "previous.ckpt"
        self.best = self.checkpoints / "best.ckpt"
        self.draft = self.checkpoints / "draft.safetensors"  # makes sampling faster; a run without it is complete
        self.metrics = self.path / "metrics.json"
        self.metrics_before = self.path / "metrics_before.json"  # of a finished run that is being extended
        self.status_file = self.path / "status.json"
        self.sample = self.path / "sample.txt"
        self.history = self.path / "history.csv"
        # tensorboard: of versions before 0.3; since then the event files are in the run directory itself.
        self.loggers = [self.path / name for name in ("tensorboard", "csv", "wandb", "mlflow")]
        self.logger_runs = self.path / "logger_runs.json"  # the identifiers of this run at W&B and MLflow
        self.hydra = self.path / ".hydra"
        self.config = self.hydra / "config.yaml"
        self.log = self.path / "train.log"
        self._created_parents: list[Path] = []
        self.new = False

    def claim(self, chosen: bool) -> None:
        """Creates the directory; appends a number to its name if the name is taken and not `chosen`.

        Args:
            chosen: whether the user chose the path.

        Raises:
            UserError: the directory cannot be created, or `chosen` and it already contains a run.
        """
        requested, count = self.path, 1
        try:
            self.make_parents()
            while True:
                try:
                    self.path.mkdir()
                    self.new = True
                    return
                except FileExistsError:
                    if chosen:
                        self.check_empty()
                        return
                count += 1
                created = self._created_parents
                self.__init__(requested.with_name(f"{requested.name}_{count}"))
                self._created_parents = created
        except OSError as error:
            self.remove_parents()
            raise UserError(
                f"the run directory {requested} cannot be created: {error.strerror}. Choose another one: "
                f"hydra.run.dir=FOLDER"
            ) from error

    def check_links(self) -> None:
        """Raises `UserError` if a link leads out of the directory: what is written through it would change other files.

        Links that W&B makes are left out.
        """
        root = self.path.resolve()
        for path in self.path.rglob("*"):
            inside = "wandb" in path.relative_to(self.path).parts[:-1]
            if path.is_symlink() and not inside and not path.resolve().is_relative_to(root):
                raise UserError(
                    f"{path} is a link out of the run directory, and this command would write to {path.resolve()}: "
                    f"replace it by what it points to, or move the complete run there"
                )

    def check_empty(self) -> None:
        """Raises `UserError` if the path already contains a run or other files."""
        if not self.path.is_dir() or not self._is_empty():
            raise UserError(
                f"{self.path} already exists: choose another hydra.run.dir, or resume its run: "
                f"{command_line('train', f'resume={self.path}')}"
            )

    def make_parents(self) -> None:
        self._created_parents = [folder for folder in self.path.parents if not folder.exists()]
        self.path.parent.mkdir(parents=True, exist_ok=True)

    def _is_empty(self) -> bool:
        return all(p.name in ALLOWED_BEFORE_START or p.name.startswith("rank_") for p in self.path.iterdir())

    def clear(self) -> None:
        """Removes the files of a run so that it can start again; train.log is kept and appended to."""
        for folder in (self.checkpoints, *self.loggers, self.hydra):
            shutil.rmtree(folder, ignore_errors=True)
        for file in self.path.glob(EVENT_FILES):
            file.unlink()
        # status.json is removed last: if this method is interrupted, the directory is still recognized as a run.
        (self.path / "provenance.json").unlink(missing_ok=True)
        for file in (self.history, self.metrics, self.metrics_before, self.sample, self.logger_runs, self.status_file):
            file.unlink(missing_ok=True)

    def remove_temporary_files(self) -> None:
        """Removes partially written files of killed processes. Call only while holding the lock."""
        for folder in (self.path, self.checkpoints):
            for file in folder.glob(".*-*"):
                if file.is_file():
                    file.unlink()
        for file in (*self.path.glob("error_rank_*.txt"), *self.path.glob("rank_*.log")):  # from before resuming
            file.unlink()

    def remove_if_unused(self) -> None:
        """Removes the directory and the parents created for it, if it is new and no run has started in it."""
        with contextlib.suppress(OSError):
            if self.new and self._is_empty() and not self.log.exists():
                shutil.rmtree(self.path)
                self.remove_parents()

    def remove_parents(self) -> None:
        """Removes the parent folders that were created for this directory and are empty."""
        for folder in self._created_parents:
            with contextlib.suppress(OSError):
                folder.rmdir()

    def read_config(self) -> DictConfig | None:
        """The saved config, migrated to this version; None if it is missing or damaged."""
        with contextlib.suppress(OSError, YAMLError, OmegaConfBaseException, AttributeError):
            config = OmegaConf.load(self.config)
            if not isinstance(config, DictConfig):
                return None
            if {*SAVED_KEYS} <= {*config} and all(OmegaConf.is_dict(config[name]) for name in COMPONENTS):
                keys = (*SAVED_KEYS, *SAVED_KEYS_SINCE_0_3, "on_divergence", "checkpoint")
                plain = OmegaConf.to_container(OmegaConf.masked_copy(config, [key for key in keys if key in config]))
                return None if find_non_plain(plain, "config") else DictConfig(migrate(plain))
        return None

    def first_rank_error(self) -> str:
        """The error of the rank that failed first, in one line; empty if no rank has written one."""
        files = sorted(self.path.glob("error_rank_*.txt"), key=lambda file: file.stat().st_mtime_ns)
        if not files:
            return ""
        rank = files[0].stem.rpartition("_")[2]
        lines = files[0].read_text().strip().splitlines() or ["for an unknown reason"]
        return f"rank {rank} failed: {lines[-1]}"

    def read_overrides(self) -> list[str]:
        """The recorded overrides of the first start; empty if they are missing or damaged."""
        with contextlib.suppress(OSError, YAMLError, OmegaConfBaseException):
            overrides = OmegaConf.to_container(OmegaConf.load(self.hydra / "overrides.yaml"), resolve=False)
            if isinstance(overrides, list):
                return [migrate_override(line) for line in overrides if isinstance(line, str)]
        return []

    def read_choices(self) -> dict[str, str]:
        """The selected option of each config group that has one."""
        with contextlib.suppress(OSError, YAMLError, OmegaConfBaseException, AttributeError):
            choices = OmegaConf.to_container(OmegaConf.load(self.hydra / "hydra.yaml").hydra.runtime.choices)
            # In a damaged file it may have another type: an `AttributeError`.
            selected = cast(dict[str, str | None], choices).items()
            return {migrate_key(group): choice for group, choice in selected if choice is not None}
        return {}

    def read_logger_runs(self) -> dict[str, str]:
        """The identifier of this run at each logger that has one, by the name of the logger in the config."""
        with contextlib.suppress(OSError, ValueError, AttributeError):
            runs = json.loads(self.logger_runs.read_text()).items()
            return {name: run for name, run in runs if isinstance(run, str) and re.fullmatch(r"[\w-]+", run)}
        return {}

    def read_metrics(self) -> dict[str, Any]:
        """The metrics of a finished run.

        Raises:
            UserError: the file is damaged.
        """
        with contextlib.suppress(ValueError, RecursionError):
            metrics = json.loads(self.metrics.read_text())
            if isinstance(metrics, dict) and isinstance(metrics.get("corpus_sha256"), str):
                return metrics
        raise UserError(f"{self.metrics} is damaged: delete it, and the run continues from its last checkpoint")

    def write_status(self, state: str, step: int, reason: str = "") -> None:
        assert state in STATES
        status = {"state": state, "step": step, "time": time.time(), "reason": reason}
        write_json(self.status_file, status | {"pid": os.getpid(), "host": platform.node()})

    def read_status(self) -> dict[str, Any]:
        """Returns status.json. The state `running` without a lock, as after kill -9, is read as `interrupted`."""
        try:
            status = json.loads(self.status_file.read_text())
            if status["state"] == "running" and lock.is_held(self.path) is False:
                status |= {"state": "interrupted", "reason": "the process was killed"}
            if status["state"] in STATES and isinstance(status["step"], int) and isinstance(status["reason"], str):
                return status | {"reason": without_controls(status["reason"]).replace("\n", " ")}
            raise ValueError(status)
        except (OSError, ValueError, TypeError, KeyError, RecursionError):
            return {"state": "failed", "step": 0, "reason": "status.json is missing or damaged"}


def write_json(path: Path, content: dict[str, Any]) -> None:
    atomic_write_text(path, json.dumps(content, indent=2) + "\n")


def write_hydra(folder: Path, config: DictConfig, hydra: DictConfig) -> None:
    """Writes Hydra's files: the composed config, and the overrides and group choices of the first start."""
    folder.mkdir(exist_ok=True)
    atomic_write_text(folder / "config.yaml", OmegaConf.to_yaml(config))
    if (folder / "hydra.yaml").exists():  # resumed: the overrides of the first start identify the run
        return
    atomic_write_text(folder / "hydra.yaml", OmegaConf.to_yaml(OmegaConf.create({"hydra": hydra})))
    atomic_write_text(folder / "overrides.yaml", OmegaConf.to_yaml(hydra.overrides.task))


def provenance(corpus: str, corpus_sha256: str, device: str, devices: int, threads: int) -> dict[str, Any]:
    """The information needed to reproduce a run besides its config: versions, hardware, corpus."""
    packages = ("chargpt", "torch", "lightning", "hydra-core", "omegaconf", "torchmetrics", "numpy")
    return {
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": [*program_name().split(), *(text for text in arguments() if not is_trust(text))],
        "python": platform.python_version(),
        "versions": {name: version(name) for name in packages},
        **git_state(),
        "host": platform.node(),
        "system": platform.platform(),
        "processor": processor_name(),
        "device": device,
        "devices": devices,
        "threads": threads,
        "corpus": corpus,
        "corpus_sha256": corpus_sha256,
    }


def git_state(package: Path = PACKAGE) -> dict[str, str | bool | None]:
    """The commit of the clone that contains the package, and whether tracked files are modified.

    Both are None if the package is not `src/chargpt` of a repository. An installed package may be located in another
    project's repository, whose commit does not identify the version of this code.
    """
    top_level, _, commit = (_git(package, "rev-parse", "--show-toplevel", "HEAD") or "").rpartition("\n")
    if Path(top_level) / "src" / "chargpt" != package.resolve():
        return {"git_commit": None, "git_dirty": None}
    return {"git_commit": commit, "git_dirty": bool(_git(package, "status", "--porcelain", "--untracked-files=no"))}


def _git(folder: Path, *arguments: str) -> str | None:
    """The output of git in a folder; None if git fails or is not installed."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        result = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=10, check=True)
        return result.stdout.strip()
    return None
