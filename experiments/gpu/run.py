"""Proves and measures the bench on one GPU, in at most 480 s; every figure is a row of results.csv.

    python experiments/gpu/run.py --out results             # on a machine with a CUDA GPU
    python experiments/gpu/run.py --out results --dry       # the same code with tiny sizes on two CPU cores
    python experiments/gpu/run.py --reference               # writes reference.csv: the CPU losses of `agree`
    python experiments/gpu/run.py --noise 1e-6              # how much rounding changes them

Each stage is a process with a timeout. Two are alive at most: while one measures, the next one imports; a lock
keeps the measuring exclusive. Exit codes: 0 done, 1 a row failed, 2 a mistake in what was asked.
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
FACTOR = 2.5  # timeout of a stage over its planned seconds
DRY_SECONDS, DRY_TIMEOUT = 20.0, 240.0  # of a stage in a dry run, planned and at most
PR_SET_CHILD_SUBREAPER = 36


class Results:
    """results.csv: whole after each row."""

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


class Child:
    """The process of a stage, as run.py sees it.

    Attributes:
        locked: when it got the lock (`time.monotonic`); None before.
        admitted: whether its planned seconds fitted the budget when its turn came.
        turn: when that was.
        reason: why it was killed.
    """

    def __init__(self, name: str, module: ModuleType, work: Path, dry: bool, log: Any, seconds: float):
        self.name, self.module, self.dry, self.seconds = name, module, dry, seconds
        self.device, self.torch = "", ""
        self.locked: float | None = None
        self.reason = self.unusable = ""
        self.admitted, self.turn = False, 0.0
        self.left = {(case.name, case.metric): case for case in module.CASES}
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

    def take(self, results: Results) -> None:
        """Handles what the stage has sent."""
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
        case = self.left.pop((row["case"], row["metric"]))
        expected = case.dry if self.dry and case.dry is not None else case.expected
        ok = case.decision(row["value"], self.dry) if row["ok"] is None else row["ok"]
        row |= dict(stage=self.name, unit=case.unit, expected=expected, ok=ok, device=self.device, torch=self.torch)
        results.write(**row)

    def kill(self, reason: str) -> None:
        self.reason = reason
        runs.kill_tree(self.process.pid)

    def close(self, results: Results) -> None:
        """The rest of its rows, once it has ended."""
        self.process.wait()
        self._reader.join(timeout=5)
        if self.admitted:
            self.take(results)
        reason = self.reason or f"the stage ended with exit code {self.process.returncode}"
        finish(results, self, reason, "skipped" if self.reason.startswith("the budget") else "failed")

    def timeout(self) -> float:
        """Seconds with the lock, or of its turn without it, after which it is killed."""
        return DRY_TIMEOUT if self.dry else FACTOR * self.seconds


def finish(results: Results, child: Child, reason: str, ok: str) -> None:
    for name, metric in list(child.left):
        lacking = child.dry and child.left[name, metric].cuda
        value, how = ("needs CUDA", "skipped") if lacking else (reason, ok)
        child.write(results, dict(case=name, metric=metric, value=value, ok=how, seconds=0.0))


def environment(work: Path, dry: bool) -> dict[str, str]:
    """Of every process of the kit. The wheels, where this Python lacks them, are found before it."""
    path = [str(cases.HERE), str(cases.ROOT / "src"), str(work / "wheels"), os.environ.get("PYTHONPATH", "")]
    here = {"PYTHONPATH": os.pathsep.join(path).strip(os.pathsep), "PYTHONUNBUFFERED": "1"}
    # A process that has asked the CUDA driver for devices cannot fork; NVML can be asked.
    here |= {"PYTORCH_NVML_BASED_CUDA_CHECK": "1", "GOMP_SPINCOUNT": "50000", "MPLCONFIGDIR": str(work)}
    # Several runs compile side by side; each would start a process a core for it.
    return here | (
        {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"} if dry else {"TORCHINDUCTOR_COMPILE_THREADS": "4"}
    )


def unpack_wheels(work: Path) -> None:
    """Makes the wheels beside this file importable, as far as this Python has other versions or none of them."""
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
    except importlib.metadata.PackageNotFoundError:  # a checkout that was not installed: provenance.json asks
        record = work / "wheels" / "chargpt-0.dist-info"
        record.mkdir()
        (record / "METADATA").write_text("Metadata-Version: 2.1\nName: chargpt\nVersion: 0\n")


class Stop(Exception):
    """Nothing more can be measured: one line."""


def measure(names: list[str], results: Results, work: Path, dry: bool, log: Any, end: float) -> None:
    """Runs the stages in their order; `end` is when the budget is used up (`time.monotonic`)."""
    waiting, live = list(names), []
    modules = {name: importlib.import_module(f"stages.{name}") for name in names}

    def planned(name: str) -> float:
        return DRY_SECONDS if dry else modules[name].SECONDS

    def start() -> None:
        if waiting and len(live) < 2 and (not live or live[0].locked):
            name = waiting.pop(0)
            live.append(Child(name, modules[name], work, dry, log, planned(name)))

    try:
        while waiting or live:
            start()
            now, first = time.monotonic(), live[0]
            if not first.admitted and not first.reason:
                first.admitted = now <= end - first.seconds
                first.turn = now
                if not first.admitted:
                    left = f"the budget has {max(0.0, end - now):.0f} s left"
                    first.kill(f"{left}, and {first.seconds:.0f} s were planned")
            if first.admitted:
                first.take(results)
            if first.unusable:
                first.kill(first.unusable)
                raise Stop(first.unusable)
            if first.process.poll() is None and not first.reason:
                if now > end - 1:
                    first.kill("the budget is used up")
                elif (spent := now - (first.locked or first.turn)) > first.timeout():
                    first.kill(f"killed after {spent:.0f} s, planned were {first.seconds:.0f} s")
            if first.process.poll() is not None:
                live.remove(first)
                reap(live)
                first.close(results)
                shutil.rmtree(work / first.name, ignore_errors=True)
            else:
                time.sleep(0.02)
    finally:
        for child in live:
            child.kill(child.reason or "interrupted")
            child.close(results)
        reap([])


def reap(live: list[Child]) -> None:
    """Kills what a stage that has ended left running: on Linux, this process has become its parent."""
    keep = {child.process.pid for child in live}
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
    parser.add_argument("--out", type=Path, help="folder of results.csv and run.log")
    parser.add_argument("--budget", type=float, default=480.0, help="seconds")
    parser.add_argument("--stages", default=",".join(stages.NAMES), help="some of the stages, in any order")
    parser.add_argument("--dry", action="store_true", help="tiny sizes on the CPU")
    parser.add_argument("--reference", action="store_true", help="write reference.csv, on the CPU")
    parser.add_argument("--noise", type=float, help="print what relative noise on the gradients does to `agree`")
    args = parser.parse_args()
    names = [name for name in stages.NAMES if name in args.stages.split(",")]
    if unknown := sorted(set(args.stages.split(",")) - set(stages.NAMES)):
        sys.stderr.write(f"run.py: no stage {unknown[0]!r}: the stages are {', '.join(stages.NAMES)}\n")
        return 2
    if not (args.out or args.reference or args.noise):
        sys.stderr.write("run.py: --out FOLDER must be given: results.csv goes there\n")
        return 2
    began = time.monotonic()
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    for number in (signal.SIGINT, signal.SIGTERM):  # a shell has a process in the background ignore the first
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
                measure(names, results, work, args.dry, log, began + args.budget)
            except KeyboardInterrupt:
                sys.stderr.write("run.py: interrupted\n")
                return 1
            except Stop as stop:
                sys.stderr.write(f"run.py: {stop}\n")
                return 2
    counts = ", ".join(f"{count} {ok or 'measured'}" for ok, count in sorted(results.count.items()))
    print(f"{time.monotonic() - began:.0f} s: {counts}. {args.out / 'results.csv'}")
    return 1 if results.count["failed"] else 0


def on_the_cpu(work: Path, call: str) -> int:
    """Calls a function of the stage `agree` with a folder, in a process that finds all that the stages find."""
    (work / "agree").mkdir()
    command = [sys.executable, "-c", f"import sys, pathlib, stages.agree as agree; {call}", str(work / "agree")]
    try:
        return subprocess.run(command, env=os.environ | environment(work, dry=True), check=False).returncode
    finally:
        reap([])


if __name__ == "__main__":
    sys.exit(main())
