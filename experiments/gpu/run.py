"""Tests and measures this project on one GPU in at most 480 s; each result is a row of results.csv.

    python experiments/gpu/run.py --out results             # on a machine with a CUDA GPU
    python experiments/gpu/run.py --out results --dry       # the same code with tiny models on two CPU cores
    python experiments/gpu/run.py --reference               # writes reference.csv: the CPU losses of `agree`
    python experiments/gpu/run.py --noise 1e-6              # prints how much rounding changes them

Each stage is a process with a timeout. At most two run at a time: while one measures, the next one imports its
modules; a lock makes measuring exclusive. Exit codes: 0 no row failed, 1 a row failed, 2 user error.
"""

import argparse
import csv
import ctypes
import importlib
import importlib.metadata
import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
import cases
import runs
import stages

COLUMNS = ("stage", "case", "metric", "value", "unit", "expected", "ok", "seconds", "device", "torch")
TIMEOUT_FACTOR = 2.5  # timeout of a stage divided by its planned seconds
DRY_SECONDS, DRY_TIMEOUT = 20.0, 240.0  # planned seconds and timeout of a stage in a dry run
PR_SET_CHILD_SUBREAPER = 36


class Results:
    """The file results.csv, flushed after each row."""

    def __init__(self, path: Path):
        self._file = path.open("w", newline="")
        self._writer = csv.DictWriter(self._file, COLUMNS, lineterminator="\n")
        self._writer.writeheader()
        self._file.flush()
        self.count: Counter[str] = Counter()

    def write(self, **row: str | float) -> None:
        self._writer.writerow(row)
        self._file.flush()
        self.count[str(row["ok"])] += 1
        print(f"{row['ok'] or '-':8}{row['stage']}: {row['case']}, {row['metric']}: {row['value']} {row['unit']}")
        sys.stdout.flush()


class StageProcess:
    """The process of a stage.

    Attributes:
        locked: when the process acquired the lock (`time.monotonic`); None before.
        admitted: whether its planned seconds fitted the budget when its turn started.
        turn_start: when its turn started (`time.monotonic`).
        reason: why it was killed; empty if it was not.
        pending: cases without a row.
    """

    def __init__(self, name: str, module: ModuleType, work: Path, dry: bool, log: Any, seconds: float):
        self.name, self.module, self.dry, self.seconds = name, module, dry, seconds
        self.device, self.torch = "", ""
        self.locked: float | None = None
        self.reason = self.unusable = ""
        self.verdict = "failed"  # of the rows that are pending when the process ends
        self.admitted, self.turn_start = False, 0.0
        self.pending = {(case.name, case.metric): case for case in module.CASES}
        (work / name).mkdir()
        command = [sys.executable, "-m", "stages", name, str(work / name), str(work / "lock")]
        command += ["--dry"] if dry else []
        self.messages: queue.Queue[dict[str, Any]] = queue.Queue()
        self.process = subprocess.Popen(
            command,
            env=os.environ | environment(work, dry),
            cwd=work / name,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            process_group=0,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        for line in self.process.stdout:
            self.messages.put(json.loads(line))

    def read_messages(self, results: Results) -> None:
        """Handles the messages that the stage has sent."""
        while not self.messages.empty():
            message = self.messages.get()
            if "locked" in message:
                self.locked = time.monotonic()
            elif "unusable" in message:
                self.unusable = message["unusable"]
            elif "torch" in message:
                self.device, self.torch = message["device"], message["torch"]
            else:
                self.write(results, message)

    def write(self, results: Results, row: dict[str, Any]) -> None:
        case = self.pending.pop((row["case"], row["metric"]))
        expected = case.dry if self.dry and case.dry is not None else case.expected
        ok = case.verdict(row["value"], self.dry) if row["ok"] is None else row["ok"]
        row |= dict(stage=self.name, unit=case.unit, expected=expected, ok=ok, device=self.device, torch=self.torch)
        results.write(**row)

    def kill(self, reason: str, verdict: str = "failed") -> None:
        self.reason, self.verdict = reason, verdict
        runs.kill_tree(self.process.pid)

    def close(self, results: Results) -> None:
        """Waits for the process and writes the pending rows."""
        self.process.wait()
        self._reader.join(timeout=5)
        if self.admitted:
            self.read_messages(results)
        reason = self.reason or f"the stage exited with code {self.process.returncode}"
        for (name, metric), case in list(self.pending.items()):
            value, ok = ("needs CUDA", "skipped") if self.dry and case.cuda else (reason, self.verdict)
            self.write(results, dict(case=name, metric=metric, value=value, ok=ok, seconds=0.0))

    def timeout(self) -> float:
        """Seconds after acquiring the lock, or after the start of its turn, until it is killed."""
        return DRY_TIMEOUT if self.dry else TIMEOUT_FACTOR * self.seconds


def environment(work: Path, dry: bool) -> dict[str, str]:
    """Environment variables of every process of the kit. Unpacked wheels precede installed packages."""
    path = [str(cases.HERE), str(cases.ROOT / "src"), str(work / "wheels"), os.environ.get("PYTHONPATH", "")]
    variables = {"PYTHONPATH": os.pathsep.join(path).strip(os.pathsep), "PYTHONUNBUFFERED": "1"}
    # Makes torch count devices by NVML: a process that has initialized the CUDA driver cannot be forked.
    variables |= {"PYTORCH_NVML_BASED_CUDA_CHECK": "1", "GOMP_SPINCOUNT": "50000", "MPLCONFIGDIR": str(work)}
    # Several runs compile at the same time; by default, each would start one process per core.
    return variables | (
        {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"} if dry else {"TORCHINDUCTOR_COMPILE_THREADS": "4"}
    )


def unpack_wheels(work: Path) -> None:
    """Unpacks the wheels whose versions are not installed."""
    (work / "wheels").mkdir()
    for wheel in sorted((cases.HERE / "wheels").glob("*.whl")):
        name, version = wheel.name.split("-")[:2]
        try:
            if importlib.metadata.version(name) == version:
                continue
        except importlib.metadata.PackageNotFoundError:
            pass
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(work / "wheels")
    try:
        importlib.metadata.version("chargpt")
    except importlib.metadata.PackageNotFoundError:  # a checkout that is not installed; runs record its version
        record = work / "wheels" / "chargpt-0.dist-info"
        record.mkdir()
        (record / "METADATA").write_text("Metadata-Version: 2.1\nName: chargpt\nVersion: 0\n")


class Stop(Exception):
    """Nothing can be measured on this machine; the message is one line."""


def measure(names: list[str], results: Results, work: Path, dry: bool, log: Any, end: float) -> None:
    """Runs the stages in this order; `end` is when the budget ends (`time.monotonic`)."""
    waiting, running = list(names), []
    modules = {name: importlib.import_module(f"stages.{name}") for name in names}

    def planned(name: str) -> float:
        return DRY_SECONDS if dry else modules[name].SECONDS

    def start() -> None:
        if waiting and len(running) < 2 and (not running or running[0].locked):
            name = waiting.pop(0)
            running.append(StageProcess(name, modules[name], work, dry, log, planned(name)))

    try:
        while waiting or running:
            start()
            now, first = time.monotonic(), running[0]
            if not first.admitted and not first.reason:
                first.admitted = now <= end - first.seconds
                first.turn_start = now
                if not first.admitted:
                    remaining = max(0.0, end - now)
                    reason = f"{remaining:.0f} s of the budget are left, {first.seconds:.0f} s are planned"
                    first.kill(reason, "skipped")
            if first.admitted:
                first.read_messages(results)
            if first.unusable:
                first.kill(first.unusable)
                raise Stop(first.unusable)
            if first.process.poll() is None and not first.reason:
                if now > end - 1:
                    first.kill("the budget is used up", "skipped")
                elif (elapsed := now - (first.locked or first.turn_start)) > first.timeout():
                    first.kill(f"killed after {elapsed:.0f} s, {first.seconds:.0f} s were planned")
            if first.process.poll() is not None:
                running.remove(first)
                kill_orphans(running)
                first.close(results)
                shutil.rmtree(work / first.name, ignore_errors=True)
            else:
                time.sleep(0.02)
    finally:
        for stage in running:
            stage.kill(stage.reason or "interrupted", stage.verdict)
            stage.close(results)
        kill_orphans([])


def kill_orphans(running: list[StageProcess]) -> None:
    """Kills processes that a stage left running. On Linux, this process has become their parent."""
    keep = {stage.process.pid for stage in running}
    children = Path(f"/proc/self/task/{os.getpid()}/children")
    while children.exists():
        orphans = [pid for pid in map(int, children.read_text().split()) if pid not in keep]
        if not orphans:
            return
        for pid in orphans:
            runs.kill_tree(pid)
            try:
                os.waitpid(pid, 0)
            except ChildProcessError:
                keep.add(pid)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="folder for results.csv and run.log")
    parser.add_argument("--budget", type=float, default=480.0, help="seconds (default: 480)")
    parser.add_argument("--stages", default=",".join(stages.NAMES), help="comma-separated stages to run (default: all)")
    parser.add_argument("--dry", action="store_true", help="tiny models on the CPU")
    parser.add_argument("--reference", action="store_true", help="write reference.csv, on the CPU")
    parser.add_argument(
        "--noise", type=float, help="print how relative noise on the gradients changes the losses of `agree`"
    )
    args = parser.parse_args()
    names = [name for name in stages.NAMES if name in args.stages.split(",")]
    if unknown := sorted(set(args.stages.split(",")) - set(stages.NAMES)):
        sys.stderr.write(f"run.py: --stages: no stage {unknown[0]!r}; the stages are {', '.join(stages.NAMES)}\n")
        return 2
    if not (args.out or args.reference or args.noise):
        sys.stderr.write("run.py: --out=FOLDER is missing: the folder for results.csv\n")
        return 2
    start = time.monotonic()
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    for number in (signal.SIGINT, signal.SIGTERM):  # shells make background processes ignore SIGINT
        signal.signal(number, signal.default_int_handler)
    with tempfile.TemporaryDirectory(prefix="chargpt-gpu-", ignore_cleanup_errors=True) as folder:
        work = Path(folder)
        unpack_wheels(work)
        if args.reference:
            return on_the_cpu(work, "agree.write_reference(pathlib.Path(sys.argv[1]))")
        if args.noise:
            return on_the_cpu(work, f"agree.print_noise(pathlib.Path(sys.argv[1]), {args.noise})")
        try:
            args.out.mkdir(parents=True, exist_ok=True)
            results = Results(args.out / "results.csv")
        except OSError as error:
            sys.stderr.write(f"run.py: --out={args.out} cannot be written: {error.strerror}. Name another folder\n")
            return 2
        with (args.out / "run.log").open("w") as log:
            try:
                measure(names, results, work, args.dry, log, start + args.budget)
            except KeyboardInterrupt:
                sys.stderr.write("run.py: interrupted\n")
                return 1
            except Stop as stop:
                sys.stderr.write(f"run.py: {stop}\n")
                return 2
    counts = ", ".join(f"{count} {ok or 'measured'}" for ok, count in sorted(results.count.items()))
    print(f"{time.monotonic() - start:.0f} s: {counts}. {args.out / 'results.csv'}")
    return 1 if results.count["failed"] else 0


def on_the_cpu(work: Path, call: str) -> int:
    """Calls a function of the stage `agree` with a folder, in a process with the environment of the stages."""
    (work / "agree").mkdir()
    command = [sys.executable, "-c", f"import sys, pathlib, stages.agree as agree; {call}", str(work / "agree")]
    try:
        return subprocess.run(command, env=os.environ | environment(work, dry=True), check=False).returncode
    finally:
        kill_orphans([])


if __name__ == "__main__":
    sys.exit(main())
