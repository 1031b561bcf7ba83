"""The run directory: its files by name, each written whole or not at all."""

import contextlib
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from chargpt.checkpoint.migrations import migrate, migrate_key
from chargpt.checkpoint.plain_data import find_non_plain
from chargpt.config.instantiate import COMPONENTS, SAVED_KEYS, SAVED_KEYS_SINCE_0_3
from chargpt.errors import UserError
from chargpt.runs import lock
from chargpt.utils.atomic_write import atomic_write_text

# What may stand in a directory before its run begins: from whoever starts it, or from an attempt that failed.
ALLOWED_BEFORE_START = {".hydra", lock.NAME, "train.log", "job.log"}
STATES = ("waiting", "running", "interrupted", "failed", "diverged", "pruned", "finished")


class RunDirectory:
    """What one run leaves behind, and what everything else reads.

    Attributes:
        path: the directory; it exists once `claim` was called.
        new: whether it was made for a run that is about to begin.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.checkpoints = self.path / "checkpoints"
        self.last = self.checkpoints / "last.ckpt"
        self.previous = self.checkpoints / "previous.ckpt"
        self.best = self.checkpoints / "best.ckpt"
        self.metrics = self.path / "metrics.json"
        self.metrics_before = self.path / "metrics_before.json"  # of a finished run, while it goes on
        self.status_file = self.path / "status.json"
        self.sample = self.path / "sample.txt"
        self.history = self.path / "history.csv"
        self.tensorboard = self.path / "tensorboard"
        self.hydra = self.path / ".hydra"
        self.config = self.hydra / "config.yaml"
        self.log = self.path / "train.log"
        self._made: list[Path] = []  # folders above it that were not there before
        self.new = False  # whether it was made for this run

    def claim(self, chosen: bool) -> None:
        """Makes the directory for this run alone, with a suffix if another run took the name.

        Args:
            chosen: whether the user named it; then a run that is already there is a mistake.
        """
        wanted, count = self.path, 1
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
                made = self._made
                self.__init__(wanted.with_name(f"{wanted.name}_{count}"))
                self._made = made
        except OSError as error:
            self.remove_parents()
            raise UserError(
                f"the run directory {wanted} cannot be made: {error.strerror}. Choose another place: "
                f"hydra.run.dir=FOLDER"
            ) from error

    def check_empty(self) -> None:
        """Raises `UserError` if a run, or something else, is there already."""
        if not self.path.is_dir() or not self._is_empty():
            go_on = f"Go on with it: resume={self.path}, or choose another hydra.run.dir"
            raise UserError(f"{self.path} is already there. {go_on}")

    def make_parents(self) -> None:
        self._made = [folder for folder in self.path.parents if not folder.exists()]
        self.path.parent.mkdir(parents=True, exist_ok=True)

    def _is_empty(self) -> bool:
        return all(p.name in ALLOWED_BEFORE_START or p.name.startswith("rank_") for p in self.path.iterdir())

    def clear(self) -> None:
        """Removes what a run left behind, so that it can start again; its log stays, and gets longer."""
        for folder in (self.checkpoints, self.tensorboard, self.hydra):
            shutil.rmtree(folder, ignore_errors=True)
        # The status last: as long as it is there, the directory is that of a run.
        names = (
            "provenance.json",
            "history.csv",
            "metrics.json",
            "metrics_before.json",
            "sample.txt",
            "status.json",
        )
        for name in names:
            (self.path / name).unlink(missing_ok=True)

    def remove_temporary_files(self) -> None:
        """Removes what was half written when a process was killed. For the holder of the lock."""
        for folder in (self.path, self.checkpoints):
            for file in folder.glob(".*-*"):
                if file.is_file():
                    file.unlink()
        for file in (*self.path.glob("error_rank_*.txt"), *self.path.glob("rank_*.log")):  # of an earlier part
            file.unlink()

    def remove_if_unused(self) -> None:
        """Removes the directory, and what was made above it, if it is new and no run ever began in it."""
        with contextlib.suppress(OSError):
            if self.new and self._is_empty() and not self.log.exists():
                shutil.rmtree(self.path)
                self.remove_parents()

    def remove_parents(self) -> None:
        """Removes the folders above it that were made for it, as far as they are empty."""
        for folder in self._made:
            with contextlib.suppress(OSError):
                folder.rmdir()

    def read_config(self) -> DictConfig | None:
        """The parts of the config that were saved for it; None if there are none, or damaged ones."""
        with contextlib.suppress(OSError, YAMLError, OmegaConfBaseException, AttributeError):
            config = OmegaConf.load(self.config)
            if {*SAVED_KEYS} <= {*config} and all(OmegaConf.is_dict(config[part]) for part in COMPONENTS):
                kept = [key for key in (*SAVED_KEYS, *SAVED_KEYS_SINCE_0_3, "on_divergence") if key in config]
                plain = OmegaConf.to_container(OmegaConf.masked_copy(config, kept))
                return None if find_non_plain(plain, "config") else OmegaConf.create(migrate(plain))
        return None

    def first_rank_error(self) -> str:
        """What the first of several ranks died of, in a line; empty if none has written it down."""
        files = sorted(self.path.glob("error_rank_*.txt"), key=lambda file: file.stat().st_mtime_ns)
        if not files:
            return ""
        rank = files[0].stem.rpartition("_")[2]
        return f"rank {rank} failed: {files[0].read_text().strip().splitlines()[-1]}"

    def read_choices(self) -> dict[str, str]:
        """The choice that was made in each group of the config."""
        with contextlib.suppress(OSError, YAMLError, OmegaConfBaseException, AttributeError):
            choices = OmegaConf.to_container(OmegaConf.load(self.hydra / "hydra.yaml").hydra.runtime.choices)
            return {migrate_key(group): choice for group, choice in choices.items()}
        return {}

    def write_status(self, state: str, step: int, reason: str = "") -> None:
        assert state in STATES
        status = {"state": state, "step": step, "time": time.time(), "reason": reason}
        write_json(self.status_file, status | {"pid": os.getpid(), "host": platform.node()})

    def read_status(self) -> dict[str, Any]:
        """The state, also after a kill -9: what says that it is running and holds no lock was cut off."""
        try:
            status = json.loads(self.status_file.read_text())
            if status["state"] == "running" and lock.is_held(self.path) is False:
                status |= {"state": "interrupted", "reason": "it was killed"}
            return status
        except (OSError, ValueError, TypeError, KeyError):
            return {"state": "failed", "step": 0, "reason": "status.json is missing or damaged"}


def write_json(path: Path, content: dict[str, Any]) -> None:
    atomic_write_text(path, json.dumps(content, indent=2) + "\n")


def write_hydra(folder: Path, config: DictConfig, hydra: DictConfig) -> None:
    """Hydra's own record: the composed config, and the words and choices that the run began with."""
    folder.mkdir(exist_ok=True)
    atomic_write_text(folder / "config.yaml", OmegaConf.to_yaml(config))
    if (folder / "hydra.yaml").exists():  # resumed: what it began with says what it is
        return
    atomic_write_text(folder / "hydra.yaml", OmegaConf.to_yaml(OmegaConf.create({"hydra": hydra})))
    atomic_write_text(folder / "overrides.yaml", OmegaConf.to_yaml(hydra.overrides.task))


def provenance(corpus: str, corpus_sha256: str, device: str, devices: int, threads: int) -> dict[str, Any]:
    """What a reproduction needs to know beside the config."""
    from importlib.metadata import version

    packages = ("chargpt", "torch", "lightning", "hydra-core", "omegaconf", "torchmetrics", "numpy")
    return {
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "python": platform.python_version(),
        "versions": {name: version(name) for name in packages},
        "git_commit": _git("rev-parse", "HEAD"),
        "git_dirty": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "host": platform.node(),
        "system": platform.platform(),
        "processor": _processor(),
        "device": device,
        "devices": devices,
        "threads": threads,
        "corpus": corpus,
        "corpus_sha256": corpus_sha256,
    }


def _git(*words: str) -> str | None:
    """git's answer about the source tree; None outside one."""
    source = Path(__file__).parent
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(["git", *words], cwd=source, capture_output=True, text=True, timeout=10, check=True)
        return done.stdout.strip()
    return None


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
