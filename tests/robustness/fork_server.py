"""Runs commands as forks of a process that has imported the heavy modules once.

Each case is a process with a session of its own, the case's directory as the working directory, no standard input and
limited memory. Processes that it leaves running are killed.
"""

import atexit
import contextlib
import ctypes
import gc
import hashlib
import importlib
import os
import random
import resource
import runpy
import shlex
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
TIMEOUT = 60.0  # seconds
MEMORY = 6 << 30  # bytes of address space that a case may use in addition to the server's
CODES = (0, 1, 2, 3)  # the documented exit codes
# No downloads.
ENVIRONMENT = {"https_proxy": "http://127.0.0.1:9", "http_proxy": "http://127.0.0.1:9", "PIP_NO_INDEX": "1"}
MODULES = (
    "torch",
    "torch._dynamo",
    "torch.utils.tensorboard",
    "lightning",
    "matplotlib.backends.backend_agg",
    "hydra.core.override_parser.overrides_parser",
    "chargpt.cli.evaluate",
    "chargpt.cli.sample",
    "chargpt.cli.visualize",
    "chargpt.sweeps.compare",
    "chargpt.sweeps.sweep",
    "chargpt.training.loop",
)
_PR_CAPBSET_DROP, _PR_SET_CHILD_SUBREAPER = 24, 36
_DAC_OVERRIDE, _DAC_READ_SEARCH = 1, 2  # the capabilities by which root ignores file permissions
_CAPABILITIES_V3 = 0x20080522


@dataclass
class Outcome:
    """Exit code, output and duration of a case; `code` is None after a timeout and negative after a signal."""

    code: int | None
    out: str
    err: str
    seconds: float


def start() -> None:
    """Imports what the commands import. Call it before the first `run`."""
    sys.path.insert(0, str(ROOT))
    modules = {name: importlib.import_module(name) for name in MODULES}
    # The font cache of matplotlib, which otherwise would appear in the case's home directory.
    ENVIRONMENT["MPLCONFIGDIR"] = sys.modules["matplotlib"].get_cachedir()
    modules["torch"].set_num_threads(1)
    parser = modules["hydra.core.override_parser.overrides_parser"].OverridesParser.create()
    parser.parse_overrides(["a=1", "+b.c='d'", "~e", "f={a:1}", "g=[1,2.5,x]", "h=${i}"])
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)  # orphans of a case become children of this process
    gc.freeze()
    assert threading.active_count() == 1 == len([*Path("/proc/self/task").iterdir()]), "a fork does not copy threads"


def run(
    command: str,
    arguments: Iterable[str],
    folder: Path,
    interference: Callable[[], None] | None = None,
    timeout: float = TIMEOUT,
    **environment: str,
) -> Outcome:
    """Runs `python COMMAND.py ARGUMENTS` from `folder` in a fork of this process.

    Args:
        interference: called repeatedly by another process while the command runs.
    """
    out, err = folder.with_name(f"{folder.name}.out"), folder.with_name(f"{folder.name}.err")
    sys.stdout.flush()
    sys.stderr.flush()
    if interference:
        _fork(lambda: _repeat(interference))
    start_time = time.monotonic()
    child = _fork(lambda: _execute(command, list(arguments), folder, out, err, ENVIRONMENT | environment))
    status = _wait(child, start_time + timeout)
    seconds = time.monotonic() - start_time
    _kill_descendants()
    code = None if status is None else os.waitstatus_to_exitcode(status)
    output = [path.read_bytes().decode(errors="replace") for path in (out, err)]
    out.unlink()
    err.unlink()
    return Outcome(code, *output, seconds)


def _fork(work: Callable[[], int | None]) -> int:
    if child := os.fork():
        return child
    code = 70
    try:
        os.setsid()
        signal.alarm(0)
        code = work() or 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _execute(
    command: str, arguments: list[str], folder: Path, out: Path, err: Path, environment: dict[str, str]
) -> int:
    """Runs the command's script in this child process; returns its exit code."""
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), number)
    sys.stdout.reconfigure(encoding="utf-8", errors="strict")  # as in a UTF-8 locale
    os.chdir(folder)
    os.environ |= environment
    _drop_capabilities()
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sys.argv = [str(ROOT / f"{command}.py"), *arguments]
    code = 0
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    with contextlib.suppress(BaseException):  # what the interpreter does at exit
        threading._shutdown()
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    return code


def _drop_capabilities() -> None:
    """Makes file permissions apply to root, too, in this process and in those that it starts."""
    if os.geteuid():
        return
    libc = ctypes.CDLL(None)
    kept = (1 << 41) - 1 & ~(1 << _DAC_OVERRIDE | 1 << _DAC_READ_SEARCH)
    for capability in (_DAC_OVERRIDE, _DAC_READ_SEARCH):
        libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)
    low, high = kept & 0xFFFFFFFF, kept >> 32
    header = (ctypes.c_uint32 * 2)(_CAPABILITIES_V3, 0)
    libc.capset(header, (ctypes.c_uint32 * 6)(low, low, 0, high, high, 0))


def _repeat(work: Callable[[], None]) -> None:
    while os.getppid() != 1:
        with contextlib.suppress(OSError):
            work()


def _wait(child: int, deadline: float) -> int | None:
    """The exit status of the child; None after the deadline."""
    pause = 0.002
    while time.monotonic() < deadline:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return status
        time.sleep(pause)
        pause = min(0.05, 1.5 * pause)
    return None


def _kill_descendants() -> None:
    """Kills all children, and then the orphans that become children of this process."""
    while children := Path(f"/proc/self/task/{os.getpid()}/children").read_text().split():
        for child in map(int, children):
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            for child in map(int, children):
                os.waitpid(child, 0)


def file_digests(folder: Path) -> dict[str, str]:
    """A SHA-256 digest (or the mode, where it cannot be read) of each path below a folder."""
    digests = {}
    for parent, folders, files in os.walk(folder):
        for path in (Path(parent, name) for name in (*folders, *files)):
            digest = f"{path.lstat().st_mode:o}"
            if path.is_file() and not path.is_symlink():
                with contextlib.suppress(OSError), path.open("rb") as file:
                    digest = hashlib.file_digest(file, "sha256").hexdigest()
            digests[str(path)] = digest
    return digests


def changed_files(before: dict[str, str], after: dict[str, str]) -> list[str]:
    """Paths that were added, removed or modified between two results of `file_digests`."""
    return sorted(path for path in before.keys() | after.keys() if before.get(path) != after.get(path))


def make_run(folder: Path, *more: str) -> Path:
    """Trains a tiny run on `text.txt`, both in `folder`; returns the run directory."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "text.txt").write_text(random_text())
    outcome = run("train", [*tiny_run(folder / "text.txt"), f"hydra.run.dir={folder / 'run'}", *more], folder)
    if outcome.code:
        raise SystemExit(f"the run that all cases start from failed: {outcome.err}")
    return folder / "run"


def random_text() -> str:
    """About 15,000 characters of nonsense."""
    rng = random.Random(0)
    words = ["the", "king", "shall", "speak", "of", "love", "and", "war", "while", "all", "his", "men", "lie", "down"]
    return "".join(" ".join(rng.choices(words, k=6)).capitalize() + ".\n" for _ in range(600))


def tiny_run(text: Path) -> list[str]:
    """Overrides for a run of two steps."""
    sizes = ["model.n_layer=2", "model.n_head=2", "model.n_embd=16", "model.block_size=16", "data.batch_size=4"]
    length = ["trainer=cpu", "trainer.max_steps=2", "trainer.val_check_interval=1", "trainer.log_every_n_steps=1"]
    rest = ["model.dropout=0.2", "callbacks.samples.max_new_tokens=20"]
    return ["data=text_file", f"data.path={text}", "model=gpt_nano", *sizes, *length, *rest]


def shell_line(command: str, arguments: Iterable[str], folder: Path) -> str:
    """A shell command that repeats a case."""
    return f"cd {shlex.quote(str(folder))} && python {ROOT / command}.py {shlex.join(arguments)}"


def empty_folder(folder: Path) -> Path:
    """Deletes the folder with its content and creates it again."""
    if folder.exists():
        for parent, _, _ in os.walk(folder):
            Path(parent).chmod(0o755)
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    return folder
