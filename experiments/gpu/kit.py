"""The process of a stage: its cases, the rows that it sends, its lock, and the overrides that its runs share.

Modules of the kit import only the standard library at the top: run.py imports every stage without torch.
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
from measuring import random_text
from runs import Run, RunContext, run_in_child

# Third-party modules that train.py and sample.py import: a run is a fork of a process that has imported them.
# torch._inductor is not among them, since it starts worker processes on import.
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


class Stage(RunContext):
    """One stage, in a process of its own that sends rows to run.py as lines of JSON.

    Attributes:
        device: `cuda`, or `cpu` in a dry run.
    """

    def __init__(self, name: str, cases: Iterable[Case], work: Path, dry: bool, out: TextIO, lock: Path):
        super().__init__(name, work, os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC))
        self.cases, self.dry = list(cases), dry
        self.device = "cpu" if dry else "cuda"
        self._out, self._since = out, time.monotonic()
        self._pending = [(case.name, case.metric) for case in self.cases if not (dry and case.cuda)]

    def send(self, **message: Any) -> None:
        self._out.write(json.dumps(message) + "\n")
        self._out.flush()

    def lock(self) -> None:
        """Waits until the previous stage has ended. The lock is released when this process ends."""
        fcntl.flock(self.lock_descriptor, fcntl.LOCK_EX)
        self._since = time.monotonic()
        self.send(locked=True)

    def row(self, case: str, metric: str, value: Any, ok: str | None = None, seconds: float | None = None) -> None:
        """Sends a row. Cases that require CUDA are ignored in a dry run; run.py writes their rows."""
        if (case, metric) not in self._pending:
            assert self.declared(case, metric), f"{self.name} does not declare {case}, {metric}"
            return
        self._pending.remove((case, metric))
        now = time.monotonic()
        seconds = now - self._since if seconds is None else seconds
        self._since = now
        text = f"{value:.6g}" if isinstance(value, float) else str(value)
        self.send(case=case, metric=metric, value=text, ok=ok, seconds=round(seconds, 2))

    def declared(self, case: str, metric: str) -> bool:
        return any((c.name, c.metric) == (case, metric) for c in self.cases)

    def pending(self, case: str) -> bool:
        """Whether a row of this case has not been sent yet."""
        return any(name == case for name, _ in self._pending)

    @contextlib.contextmanager
    def attempt(self, *cases: str) -> Iterator[None]:
        """Turns an exception into `failed` for the pending rows of these cases."""
        try:
            yield
        except Exception as error:
            if not isinstance(error, Failure):
                traceback.print_exc()
            line = (str(error).strip().splitlines() or [""])[0][:300]
            self.fail(line if isinstance(error, Failure) else f"{type(error).__name__}: {line}", *cases)

    def skip(self, reason: str, *cases: str) -> None:
        """Sends `skipped` for the pending rows of these cases."""
        self._send_pending(cases, reason, "skipped")

    def fail(self, reason: str, *cases: str) -> None:
        """Sends `failed` for the pending rows of these cases."""
        self._send_pending(cases, reason, "failed")

    def _send_pending(self, cases: Iterable[str], value: str, ok: str) -> None:
        for name, metric in [row for row in self._pending if row[0] in cases]:
            self.row(name, metric, value, ok)

    def overrides(self, *more: str) -> list[str]:
        """The overrides that all training runs share (device, no samples during training), then `more`."""
        return [f"trainer={'cpu' if self.dry else 'gpu'}", "callbacks.samples.max_new_tokens=0", *more]

    def random_text(self) -> list[str]:
        """The overrides for the random text."""
        file = self.work / "random.txt"
        if not file.exists():
            file.write_text(random_text())
        return ["data=text_file", f"data.path={file}"]

    def corpus(self) -> list[str]:
        """The overrides for Tiny Shakespeare; in a dry run, or if its file is missing, for the random text."""
        if self.dry or not (DATA / "tinyshakespeare.txt").exists():
            return self.random_text()
        return [f"data.cache_dir={DATA}"]

    def run(self, name: str, *overrides: str, **settings: Any) -> Run:
        """A run of this stage, not yet started."""
        return Run(self, name, overrides, **settings)


def main(name: str, module: ModuleType, work: Path, lock: Path, dry: bool) -> None:
    """The process of one stage: imports modules, waits for the lock, runs the cases."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # everything else that is printed goes to run.log
    stage = Stage(name, module.CASES, work, dry, out, lock)
    for each in MODULES:
        with contextlib.suppress(ImportError):
            importlib.import_module(each)
    import torch  # noqa: PLC0415 - run.py imports the kit without torch

    def device() -> dict[str, str]:
        torch.zeros(1, device=stage.device).add_(1).item()
        return {"device": torch.cuda.get_device_name() if stage.device == "cuda" else _processor()}

    try:
        versions = run_in_child(stage, "device", device)
    except Failure as error:
        sys.stderr.write(f"{name}: {error}\n")
        stage.can_fork = False  # CUDA is initialized here: runs are processes that import everything again
        try:
            versions = device()
        except (RuntimeError, AssertionError) as unusable:
            stage.send(unusable=f"{stage.device} cannot be used: {str(unusable).splitlines()[0]}; add --dry")
            return
    stage.send(torch=torch.__version__, **versions)
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
