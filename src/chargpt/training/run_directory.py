"""The run directory: its files by name, each written whole or not at all."""

import contextlib
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from chargpt.errors import Mistake
from chargpt.whole import write_whole

STATES = ("waiting", "running", "interrupted", "failed", "diverged", "pruned", "finished")


class RunDirectory:
    """What one run leaves behind, and what everything else reads.

    Attributes:
        path: the directory; it exists once `claim` was called.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.checkpoints = self.path / "checkpoints"
        self.last = self.checkpoints / "last.ckpt"
        self.previous = self.checkpoints / "previous.ckpt"
        self.best = self.checkpoints / "best.ckpt"
        self.metrics = self.path / "metrics.json"
        self.status_file = self.path / "status.json"
        self.sample = self.path / "sample.txt"
        self.history = self.path / "history.csv"

    def claim(self, chosen: bool) -> None:
        """Makes the directory for this run alone, with a suffix if another run took the name.

        Args:
            chosen: whether the user named it; then a run that is already there is a mistake.
        """
        wanted, count = self.path, 1
        try:
            wanted.parent.mkdir(parents=True, exist_ok=True)
            while True:
                try:
                    self.path.mkdir()
                    return
                except FileExistsError:
                    if not self.path.is_dir() or any(p.name != ".hydra" for p in self.path.iterdir()):
                        if chosen:
                            raise Mistake(
                                f"{wanted} is already there. Go on with it: resume={wanted}, "
                                f"or choose another hydra.run.dir"
                            ) from None
                    elif chosen:
                        return
                count += 1
                self.__init__(wanted.with_name(f"{wanted.name}_{count}"))
        except OSError as error:
            raise Mistake(
                f"the run directory {wanted} cannot be made: {error.strerror}. Choose another place: "
                f"hydra.run.dir=FOLDER"
            ) from error

    def write_status(self, state: str, step: int, reason: str = "") -> None:
        assert state in STATES
        status = {"state": state, "step": step, "time": time.time(), "reason": reason}
        write_json(self.status_file, status | {"pid": os.getpid(), "host": platform.node()})

    def read_status(self) -> dict[str, Any]:
        with contextlib.suppress(OSError, json.JSONDecodeError):
            return json.loads(self.status_file.read_text())
        return {"state": "failed", "step": 0, "reason": "status.json is missing or damaged"}


def write_json(path: Path, content: dict[str, Any]) -> None:
    write_whole(path, json.dumps(content, indent=2) + "\n")


def write_hydra(folder: Path, config: DictConfig, hydra: DictConfig) -> None:
    """Hydra's own record: the composed config and the overrides."""
    folder.mkdir(exist_ok=True)
    write_whole(folder / "config.yaml", OmegaConf.to_yaml(config))
    write_whole(folder / "hydra.yaml", OmegaConf.to_yaml(OmegaConf.create({"hydra": hydra})))
    write_whole(folder / "overrides.yaml", OmegaConf.to_yaml(hydra.overrides.task))


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
