"""A fork server for the verbs: what is heavy is imported once, and each case is a process of its own.

For the experiments beside it. A case runs as a person would run it: its own session, its own folder as the working
directory, nothing on standard input, limited memory. What it leaves running is ended with it.
"""

import atexit
import contextlib
import ctypes
import gc
import hashlib
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
TIMEOUT = 60.0  # seconds; who takes longer hangs
MEMORY = 6 << 30  # bytes that a case may have on top of what the server has
CODES = (0, 1, 2, 3)
# Nothing is fetched, and nobody's cache folder is touched.
ENVIRONMENT = {"https_proxy": "http://127.0.0.1:9", "http_proxy": "http://127.0.0.1:9", "PIP_NO_INDEX": "1"}
_PR_CAPBSET_DROP, _PR_SET_CHILD_SUBREAPER = 24, 36
_DAC_OVERRIDE, _DAC_READ_SEARCH = 1, 2  # what lets root read and write whatever it likes
_CAPABILITIES_V3 = 0x20080522


@dataclass
class Outcome:
    """How a case ended; `code` is None for one that hung, and negative for one that a signal ended."""

    code: int | None
    out: str
    err: str
    seconds: float


def warm() -> None:
    """Imports what the verbs import, in one thread; before the first `run`."""
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = "1"
    sys.path.insert(0, str(ROOT))
    import lightning
    import matplotlib
    import matplotlib.backends.backend_agg
    import torch
    import torch._dynamo
    import torch.utils.tensorboard
    from hydra.core.override_parser.overrides_parser import OverridesParser

    import chargpt.cli.evaluate
    import chargpt.cli.sample
    import chargpt.cli.visualize
    import chargpt.sweeps.compare
    import chargpt.sweeps.sweep
    import chargpt.training.loop

    del lightning, chargpt
    ENVIRONMENT["MPLCONFIGDIR"] = matplotlib.get_cachedir()  # its list of fonts is not the verbs' doing
    torch.set_num_threads(1)
    OverridesParser.create().parse_overrides(["a=1", "+b.c='d'", "~e", "f={a:1}", "g=[1,2.5,x]", "h=${i}"])
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)  # what outlives its case is ours to end
    gc.freeze()
    assert threading.active_count() == 1 == len([*Path("/proc/self/task").iterdir()]), "forked, threads are lost"


def run(
    verb: str,
    words: Iterable[str],
    folder: Path,
    meanwhile: Callable[[], None] | None = None,
    timeout: float = TIMEOUT,
    **environment: str,
) -> Outcome:
    """`python VERB.py WORDS` from `folder`, by a fork of this process.

    Args:
        meanwhile: what another process does over and over as long as it runs.
    """
    out, err = folder.with_name(f"{folder.name}.out"), folder.with_name(f"{folder.name}.err")
    sys.stdout.flush()
    sys.stderr.flush()
    disturber = _fork(lambda: _over_and_over(meanwhile)) if meanwhile else None
    began = time.monotonic()
    child = _fork(lambda: _be(verb, list(words), folder, out, err, ENVIRONMENT | environment))
    status = _wait(child, began + timeout)
    seconds = time.monotonic() - began
    _end_descendants()
    del disturber
    code = None if status is None else os.waitstatus_to_exitcode(status)
    read = [path.read_bytes().decode(errors="replace") for path in (out, err)]
    out.unlink()
    err.unlink()
    return Outcome(code, *read, seconds)


def _fork(work: Callable[[], None]) -> int:
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


def _be(verb: str, words: list[str], folder: Path, out: Path, err: Path, environment: dict[str, str]) -> int:
    """The child: it becomes the verb's process, and gives its exit code."""
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), number)
    sys.stdout.reconfigure(encoding="utf-8", errors="strict")  # as in any UTF-8 locale
    os.chdir(folder)
    os.environ |= environment
    _obey_permissions()
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sys.argv = [str(ROOT / f"{verb}.py"), *words]
    code = 0
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else int(left.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    with contextlib.suppress(BaseException):  # as the interpreter ends
        threading._shutdown()
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    return code


def _obey_permissions() -> None:
    """Root, too, may then read and write only what the permissions say; so do the processes that it starts."""
    if os.geteuid():
        return
    libc = ctypes.CDLL(None)
    kept = (1 << 41) - 1 & ~(1 << _DAC_OVERRIDE | 1 << _DAC_READ_SEARCH)
    for capability in (_DAC_OVERRIDE, _DAC_READ_SEARCH):
        libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)
    low, high = kept & 0xFFFFFFFF, kept >> 32
    header = (ctypes.c_uint32 * 2)(_CAPABILITIES_V3, 0)
    libc.capset(header, (ctypes.c_uint32 * 6)(low, low, 0, high, high, 0))


def _over_and_over(work: Callable[[], None]) -> None:
    while os.getppid() != 1:
        with contextlib.suppress(OSError):
            work()


def _wait(child: int, deadline: float) -> int | None:
    """Its exit status; None if it was not done in time."""
    pause = 0.002
    while time.monotonic() < deadline:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return status
        time.sleep(pause)
        pause = min(0.05, 1.5 * pause)
    return None


def _end_descendants() -> None:
    """Ends what was forked from here and what that started: orphans are handed to this process."""
    while children := Path(f"/proc/self/task/{os.getpid()}/children").read_text().split():
        for child in map(int, children):
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            for child in map(int, children):
                os.waitpid(child, 0)


def tree(folder: Path) -> dict[str, str]:
    """All that lies in a folder, with a digest of its content."""
    found = {}
    for place, folders, files in os.walk(folder):
        for path in (Path(place, name) for name in (*folders, *files)):
            digest = f"{path.lstat().st_mode:o}"
            if path.is_file() and not path.is_symlink():
                with contextlib.suppress(OSError), path.open("rb") as file:
                    digest = hashlib.file_digest(file, "sha256").hexdigest()
            found[str(path)] = digest
    return found


def make_run(folder: Path, *more: str) -> Path:
    """A tiny finished run, and `text.txt` beside it that it was trained on; the run's directory."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "text.txt").write_text(text())
    outcome = run("train", [*tiny(folder / "text.txt"), f"hydra.run.dir={folder / 'run'}", *more], folder)
    if outcome.code:
        raise SystemExit(f"the run that all cases start from failed: {outcome.err}")
    return folder / "run"


def text() -> str:
    """Some 15,000 characters of nonsense."""
    draw = random.Random(0)
    words = [
        "the",
        "king",
        "shall",
        "speak",
        "of",
        "love",
        "and",
        "war",
        "while",
        "all",
        "his",
        "men",
        "lie",
        "down",
    ]
    return "".join(" ".join(draw.choices(words, k=6)).capitalize() + ".\n" for _ in range(600))


def tiny(text: Path) -> list[str]:
    """Words for a run of a moment."""
    sizes = ["model.n_layer=2", "model.n_head=2", "model.n_embd=16", "model.block_size=16", "data.batch_size=4"]
    length = ["trainer=cpu", "trainer.max_steps=2", "trainer.val_check_interval=1", "trainer.log_every_n_steps=1"]
    rest = ["model.dropout=0.2", "callbacks.samples.max_new_tokens=20"]
    return ["data=text_file", f"data.path={text}", "model=gpt_nano", *sizes, *length, *rest]


def command(verb: str, words: Iterable[str], folder: Path) -> str:
    """A line for a shell that does the same."""
    return f"cd {shlex.quote(str(folder))} && python {ROOT / verb}.py {shlex.join(words)}"


def fresh(folder: Path) -> Path:
    """An empty folder in the place of whatever stood there."""
    if folder.exists():
        for place, _, _ in os.walk(folder):
            Path(place).chmod(0o755)
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    return folder
