"""What the stages share: cases and rows, the lock, runs of the command line, and the files that a run leaves.

Only the standard library is imported at the top: run.py reads the cases of every stage without torch.
"""

import contextlib
import csv
import fcntl
import json
import math
import operator
import os
import random
import re
import signal
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, TextIO

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
DATA = HERE / "data"  # ignored: the corpus and nanoGPT's model.py
WORDS = ["the", "king", "shall", "speak", "of", "love", "and", "war", "while", "all", "his", "men", "lie", "down"]
WORDS += ["to", "sleep", "O", "what", "a", "night"]
OPERATORS = {"<=": operator.le, "<": operator.lt, ">=": operator.ge, ">": operator.gt, "==": operator.eq}
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
MODULES += ("hydra", "hydra._internal.config_loader_impl", "hydra.core.override_parser.overrides_parser", "yaml")
MODULES += ("omegaconf", "rich.console", "rich.progress", "tensorboard.backend.event_processing", "jaxtyping")
MODULES += ("filelock", "platformdirs", "safetensors.torch")


@dataclass(frozen=True)
class Case:
    """One row of results.csv.

    Attributes:
        expected: `<= 1e-4` and the like, or a word that the value must be; empty for a measurement.
        cuda: whether it needs CUDA.
        dry: what is expected in a dry run, where that is something else.
    """

    name: str
    metric: str
    unit: str = ""
    expected: str = ""
    cuda: bool = False
    dry: str | None = None

    def verdict(self, value: str, dry: bool) -> str:
        """`ok`, `failed`, or empty where nothing is expected."""
        expected = self.dry if dry and self.dry is not None else self.expected
        if not expected:
            return ""
        word, _, limit = expected.partition(" ")
        if word not in OPERATORS:
            return "ok" if value == expected else "failed"
        try:
            return "ok" if OPERATORS[word](float(value), float(limit)) else "failed"
        except ValueError:
            return "failed"


class Failure(Exception):
    """A case failed: one line."""


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


class Run:
    """`python train.py WORDS` (or another verb), in a folder of its own under the stage's.

    Args:
        words: where none of them is `resume=`, the run directory is added.
        directory: of the run, where it is another's.
        threads: of torch; None for as many as there are cores.
        work: what the process does instead; its figures go to `result.json` in the folder.

    Attributes:
        code: exit code; negative for a signal; None for a run that took too long.
        seconds: from the start of its process to its end.
    """

    def __init__(
        self,
        stage: Stage,
        name: str,
        words: Iterable[str] = (),
        verb: str = "train",
        directory: Path | None = None,
        threads: int | None = None,
        timeout: float = 120.0,
        work: Callable[[], dict[str, Any]] | None = None,
        **environment: str,
    ):
        self.name, self.verb, self.timeout, self._stage = name, verb, timeout, stage
        self.folder = stage.work / re.sub(r"\W+", "_", name)
        self.directory = directory or self.folder / "run"
        self.words = list(words)
        if verb == "train" and directory is None:
            self.words.append(f"hydra.run.dir={self.directory}")
        self.threads, self.environment, self._work = threads, environment, work
        self.out, self.err = self.folder / "out.txt", self.folder / "err.txt"
        self.code: int | None = None
        self.seconds = 0.0
        self.pid = 0

    def start(self) -> "Run":
        self.folder.mkdir(parents=True, exist_ok=True)
        self._began = time.monotonic()
        self.pid = fork(self._become, self._stage)
        return self

    def _become(self) -> int:
        """The child process becomes the verb's; its exit code."""
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for number, path in ((1, self.out), (2, self.err)):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), number)
        os.chdir(self.folder)
        os.environ |= self.environment
        script = str(ROOT / f"{self.verb}.py")
        if self.threads:
            os.environ["OMP_NUM_THREADS"] = str(self.threads)
        if not self._stage.forks and not self._work:
            os.execv(sys.executable, [sys.executable, script, *self.words])
        if self.threads:
            import torch

            torch.set_num_threads(self.threads)
        if self._work:
            (self.folder / "result.json").write_text(json.dumps(self._work()))
            return 0
        import runpy

        sys.argv = [script, *self.words]
        runpy.run_path(script, run_name="__main__")
        return 0

    def poll(self) -> bool:
        """Whether it has ended; one that takes too long is killed."""
        if not self.pid:
            return True
        ended, status = os.waitpid(self.pid, os.WNOHANG)
        self.seconds = time.monotonic() - self._began
        if ended:
            self.code, self.pid = os.waitstatus_to_exitcode(status), 0
        elif self.seconds > self.timeout:
            self.kill()
        return not self.pid

    def kill(self) -> None:
        if self.pid:
            kill_tree(self.pid)
            os.waitpid(self.pid, 0)
            self.pid = 0

    def wait(self) -> "Run":
        while not self.poll():
            time.sleep(0.01)
        return self

    def check(self, code: int = 0) -> "Run":
        """Raises `Failure` if it ended otherwise than with `code`."""
        if self.code != code:
            ended = f"took more than {self.timeout:.0f} s" if self.code is None else f"exit code {self.code}"
            tail = self.err.read_text(errors="replace")[-4000:] if self.err.exists() else ""
            sys.stderr.write(f"\n--- {self._stage.name}: {self.name}: {ended}\n{tail}\n")  # for run.log
            raise Failure(f"{self.name}: {ended}: {self.last_line()}")
        return self

    def last_line(self) -> str:
        """The last that it wrote to standard error."""
        lines = self.err.read_text(errors="replace").split("\n") if self.err.exists() else []
        return next((line.strip() for line in reversed(lines) if line.strip()), "it wrote nothing")

    def history(self, column: str) -> dict[int, float]:
        """Step -> value, of one column of history.csv."""
        with (self.directory / "history.csv").open(newline="") as file:
            return {int(row["step"]): float(row[column]) for row in csv.DictReader(file) if row[column]}

    def json(self, name: str) -> dict[str, Any]:
        return json.loads((self.directory / f"{name}.json").read_text())

    def result(self) -> dict[str, Any]:
        """Of `work`."""
        return json.loads((self.folder / "result.json").read_text())

    def checkpoint(self, name: str = "last") -> dict[str, Any]:
        import torch

        path = self.directory / "checkpoints" / f"{name}.ckpt"
        return torch.load(path, weights_only=True, map_location="cpu")


def together(
    runs: Iterable[Run], slots: int | None = None, done: Callable[[Run], None] | None = None
) -> list[Run]:
    """Starts the runs, several at a time, and waits for all.

    Args:
        slots: how many at a time; by default one a core, and 8 at most. Each then has its share of the cores.
        done: called with each run as it ends.
    """
    runs, live = list(runs), []
    cores = os.cpu_count() or 1
    slots = slots or min(cores, 8)
    for run in runs:
        run.threads = run.threads or max(1, cores // min(slots, len(runs)))
    waiting = list(runs)
    while waiting or live:
        while waiting and len(live) < slots:
            live.append(waiting.pop(0).start())
        for run in [run for run in live if run.poll()]:
            live.remove(run)
            if done:
                done(run)
        time.sleep(0.01)
    return runs


def fork(work: Callable[[], int | None], stage: Stage | None = None) -> int:
    """Runs `work` in a child process, whose exit code is what it returns; the child's process id."""
    sys.stdout.flush()
    sys.stderr.flush()
    if child := os.fork():
        return child
    code = 1
    try:
        if stage is not None:  # the lock is the stage's alone, and ends with it
            os.close(stage._lock)
        code = work() or 0
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else int(left.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(BaseException):  # as the interpreter ends
            import atexit
            import threading

            threading._shutdown()
            atexit._run_exitfuncs()
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def measured(
    stage: Stage, name: str, work: Callable[[], dict[str, Any]], timeout: float = 100.0
) -> dict[str, Any]:
    """What `work` returns in a child process. Raises `Failure` if it fails, or takes too long."""
    if not stage.forks:
        return work()
    return Run(stage, name, timeout=timeout, work=work).start().wait().check().result()


def kill_tree(pid: int) -> None:
    """Kills a process and all that it started."""
    for each in (*descendants(pid), pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(each, signal.SIGKILL)


def descendants(pid: int) -> list[int]:
    """The processes below one, where there is a /proc."""
    parents: dict[int, list[int]] = {}
    for file in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            parents.setdefault(int(file.read_text().rpartition(")")[2].split()[1]), []).append(
                int(file.parent.name)
            )
    found, todo = [], [pid]
    while todo:
        children = parents.get(todo.pop(), [])
        found += children
        todo += children
    return found


def take_turn(folder: Path, name: str, count: int, patience: float = 90.0) -> TextIO:
    """Waits until `count` processes are ready, then for the lock; the caller closes the file when it is done.

    Each process leaves a file NAME.ready in the folder; whoever watches them does it for one that has ended.
    """
    (folder / f"{name}.ready").touch()
    deadline = time.monotonic() + patience
    while len(list(folder.glob("*.ready"))) < count and time.monotonic() < deadline:
        time.sleep(0.01)
    turn = (folder / "turn.lock").open("w")
    fcntl.flock(turn, fcntl.LOCK_EX)
    return turn


def milliseconds(step: Callable[[], None], steps: int, device: str) -> float:
    """Of one step: the median over ten parts, after as many steps as one part has."""
    import torch

    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    part, seconds = max(1, steps // 10), []
    for _ in range(11):
        wait()
        start = time.perf_counter()
        for _ in range(part):
            step()
        wait()
        seconds.append((time.perf_counter() - start) / part)
    return 1000 * statistics.median(seconds[1:])


def same_bits(one: Any, other: Any, path: str = "") -> str:
    """Where two nests of plain data and tensors differ first; empty where they are equal to the last bit."""
    import torch

    if isinstance(one, dict) and isinstance(other, dict):
        if other_keys := one.keys() ^ other.keys():
            return f"{path}.{next(iter(other_keys))}"
        pairs = ((one[key], other[key], f"{path}.{key}") for key in one)
    elif isinstance(one, list | tuple) and isinstance(other, list | tuple) and len(one) == len(other):
        pairs = ((a, b, f"{path}[{i}]") for i, (a, b) in enumerate(zip(one, other, strict=True)))
    elif isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return "" if one.dtype == other.dtype and torch.equal(one, other) else path
    else:
        return "" if type(one) is type(other) and one == other else path
    return next((where for where in (same_bits(*pair) for pair in pairs) if where), "")


def largest_difference(one: dict[int, float], other: dict[int, float]) -> float:
    """Between two curves over the same steps; NaN if the steps differ or one of them is empty."""
    if one.keys() != other.keys() or not one:
        return math.nan
    differences = [abs(one[step] - other[step]) for step in one]
    return math.nan if any(map(math.isnan, differences)) else max(differences)


def invented_text(characters: int = 4000) -> str:
    """Nonsense in sentences, always the same."""
    draw, text = random.Random(0), ""
    while len(text) < characters:
        text += " ".join(draw.choices(WORDS, k=draw.randint(3, 9))).capitalize() + ".\n"
    return text[:characters]


def nanogpt() -> ModuleType:
    """nanoGPT's model.py. Raises `Failure` where it is not there."""
    if not (DATA / "model.py").exists():
        raise Failure(f"no {(DATA / 'model.py').relative_to(ROOT)}")
    sys.path.insert(0, str(DATA))
    import model

    return model


def main(name: str, module: ModuleType, work: Path, lock: Path, dry: bool) -> None:
    """The process of one stage: imports, waits for the lock, runs its cases."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever else is printed goes to run.log
    stage = Stage(name, module.CASES, work, dry, out, lock)
    import importlib

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
        stage.forks = (
            False  # CUDA was touched before the fork: runs are then processes that import everything anew
        )
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
