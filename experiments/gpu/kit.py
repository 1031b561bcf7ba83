"""The process of a stage: its cases, the rows that it sends, the lock, and the words that its runs share.

Only the standard library is imported at the top: run.py reads the cases of every stage without torch.
"""

import contextlib
import fcntl
import importlib
import json
import os
import sys
import time
import traceback
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, TextIO

from cases import DATA, Case, Failure
from measuring import invented_text
from runs import Run, measured

# Third-party modules that train.py and sample.py import. A run is a fork of a process that has them already.
# Not torch._inductor: it starts worker processes on import.
MODULES = (
    "torch",
    "torch._dynamo",
    "torch.utils.tensorboard",
    "torch.distributed.fsdp",
    "torchmetrics",
    "lightning",
)
MODULES += ("hydra", "hydra.core.override_parser.overrides_parser", "yaml")
MODULES += ("omegaconf", "rich.console", "rich.progress", "tensorboard.backend.event_processing", "jaxtyping")
MODULES += ("filelock", "platformdirs", "psutil", "safetensors.torch")


class Stage:
    """One stage, in its own process: it sends rows to run.py as lines of JSON.

    Attributes:
        work: a folder for its runs.
        device: `cuda`, or `cpu` in a dry run.
    """

    def __init__(self, name: str, cases: Iterable[Case], work: Path, dry: bool, out: TextIO, lock: Path):
        self.name, self.cases, self.work, self.dry = name, list(cases), work, dry
        self.device = "cpu" if dry else "cuda"
        self.forks = True
        self._out, self._since = out, time.monotonic()
        self._left = [(case.name, case.metric) for case in self.cases if not (dry and case.cuda)]
        self._lock = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)

    def send(self, **message: Any) -> None:
        self._out.write(json.dumps(message) + "\n")
        self._out.flush()

    def lock(self) -> None:
        """Waits until the stage before this one has ended. The lock ends with this process."""
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        self._since = time.monotonic()
        self.send(locked=True)

    def row(self, case: str, metric: str, value: Any, ok: str | None = None, seconds: float | None = None) -> None:
        """Sends a row. Cases that this machine cannot run are left out; run.py says so."""
        if (case, metric) not in self._left:
            assert self.declared(case, metric), f"{self.name} does not declare {case}, {metric}"
            return
        self._left.remove((case, metric))
        now = time.monotonic()
        seconds = now - self._since if seconds is None else seconds
        self._since = now
        text = f"{value:.6g}" if isinstance(value, float) else str(value)
        self.send(case=case, metric=metric, value=text, ok=ok, seconds=round(seconds, 2))

    def declared(self, case: str, metric: str) -> bool:
        return any((c.name, c.metric) == (case, metric) for c in self.cases)

    def wanted(self, case: str) -> bool:
        """Whether a row of this case is still to come."""
        return any(name == case for name, _ in self._left)

    @contextlib.contextmanager
    def attempt(self, *cases: str) -> Iterator[None]:
        """An error within fails those rows of the cases that are still to come, and nothing else."""
        try:
            yield
        except Exception as error:
            if not isinstance(error, Failure):
                traceback.print_exc()
            line = (str(error).strip().splitlines() or [""])[0][:300]
            self.fail(line if isinstance(error, Failure) else f"{type(error).__name__}: {line}", *cases)

    def skip(self, reason: str, *cases: str) -> None:
        """Rows of the cases that are still to come are skipped."""
        self._rest(cases, reason, "skipped")

    def fail(self, reason: str, *cases: str) -> None:
        """Rows of the cases that are still to come have failed."""
        self._rest(cases, reason, "failed")

    def _rest(self, cases: Iterable[str], value: str, ok: str) -> None:
        for name, metric in [left for left in self._left if left[0] in cases]:
            self.row(name, metric, value, ok)

    # Runs of the command line.

    def words(self, *more: str) -> list[str]:
        """The words that all training runs share: the device, no samples on the way, then `more`."""
        return [f"trainer={'cpu' if self.dry else 'gpu'}", "callbacks.samples.max_new_tokens=0", *more]

    def invented(self) -> list[str]:
        """The words for the invented text."""
        file = self.work / "invented.txt"
        if not file.exists():
            file.write_text(invented_text())
        return ["data=text_file", f"data.path={file}"]

    def corpus(self) -> list[str]:
        """The words for the real corpus; in a dry run, and where it is not there, for the invented text."""
        if self.dry or not (DATA / "tinyshakespeare.txt").exists():
            return self.invented()
        return [f"data.cache_dir={DATA}"]

    def run(self, name: str, *words: str, **settings: Any) -> "Run":
        return Run(self, name, words, **settings)


def main(name: str, module: ModuleType, work: Path, lock: Path, dry: bool) -> None:
    """The process of one stage: imports, waits for the lock, runs its cases."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever else is printed goes to run.log
    stage = Stage(name, module.CASES, work, dry, out, lock)
    for each in MODULES:
        with contextlib.suppress(ImportError):
            importlib.import_module(each)
    import torch

    def look() -> dict[str, str]:
        torch.zeros(1, device=stage.device).add_(1).item()
        return {"device": torch.cuda.get_device_name() if stage.device == "cuda" else _processor()}

    try:
        found = measured(stage, "device", look)
    except Failure as error:
        sys.stderr.write(f"{name}: {error}\n")
        stage.forks = False  # CUDA was touched before the fork: runs are processes that import everything anew
        try:
            found = look()
        except (RuntimeError, AssertionError) as unusable:
            stage.send(unusable=f"{stage.device} cannot be used: {str(unusable).splitlines()[0]}; add --dry")
            return
    stage.send(torch=torch.__version__, **found)
    if hasattr(module, "prepare"):
        module.prepare(stage)
    stage.lock()
    module.run(stage)


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return "cpu"
