"""The GPU kit: run.py with test stages, and the complete kit in a dry run."""

import csv
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.conftest import REPO

KIT = REPO / "experiments" / "gpu"
TESTED_ON_A_CPU = ("agree", "resume", "ranks", "sampling", "faults")
# A stub, so that stages start quickly.
TORCH = """
__version__ = "0"

class zeros:
    def __init__(self, *args, **settings): ...
    def add_(self, other): return self
    def item(self): return 1.0
"""
STAGE = """
import os, pathlib, subprocess, sys, time
from cases import Case

SECONDS = {seconds}
CASES = [Case("first", "metric", "s", "<= 1"), Case("second", "metric"), Case("third", "metric", cuda=True)]


def run(stage):
    stage.row("first", "metric", 0.5)
{body}
"""
PASSES = 'stage.row("second", "metric", "text")'
HANGS = "subprocess.run([sys.executable, '-c', 'import time; time.sleep(1000)', str(stage.work)])"


class Kit:
    """A copy of the kit with the stages of a test."""

    def __init__(self, folder: Path):
        self.folder, self.out = folder / "kit", folder / "out"
        (self.folder / "stages").mkdir(parents=True)
        for name in ("run.py", "kit.py", "cases.py", "runs.py", "measuring.py", "stages/__main__.py"):
            shutil.copy(KIT / name, self.folder / name)
        (self.folder / "torch.py").write_text(TORCH)
        for name in ("lightning", "torchmetrics", "hydra", "omegaconf", "tensorboard", "rich", "safetensors"):
            (self.folder / f"{name}.py").touch()

    def stages(self, seconds: float = 5, timeout: float = 20, **bodies: str) -> None:
        (self.folder / "stages" / "__init__.py").write_text(f"NAMES = {tuple(bodies)}\n")
        for name, body in bodies.items():
            text = STAGE.format(seconds=seconds, body=textwrap.indent(body, "    "))
            (self.folder / "stages" / f"{name}.py").write_text(text)
        run = (self.folder / "run.py").read_text()
        head, _, tail = run.partition("DRY_SECONDS, DRY_TIMEOUT = ")
        tail = tail.partition("\n")[2]
        (self.folder / "run.py").write_text(f"{head}DRY_SECONDS, DRY_TIMEOUT = {seconds}, {timeout}\n{tail}")

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, str(self.folder / "run.py"), "--out", str(self.out), "--dry", *arguments]

    def run(self, *arguments: str) -> subprocess.CompletedProcess:
        return subprocess.run(self.command(*arguments), capture_output=True, text=True, timeout=100, check=False)

    def rows(self) -> dict[tuple[str, str], tuple[str, str]]:
        """(stage, case) -> (value, ok)."""
        return {(row["stage"], row["case"]): (row["value"], row["ok"]) for row in read(self.out)}


def read(out: Path) -> list[dict[str, str]]:
    with (out / "results.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def kit(tmp_path: Path) -> Kit:
    return Kit(tmp_path)


def processes_with(argument: Path) -> str:
    processes = subprocess.run(["ps", "-ef"], capture_output=True, text=True, check=True).stdout
    return "\n".join(line for line in processes.splitlines() if str(argument) in line)


def test_results_contain_a_row_with_a_verdict_per_case(kit):
    kit.stages(one=PASSES, two='stage.row("second", "metric", 2)')
    process = kit.run()
    assert process.returncode == 0, process.stderr
    assert kit.rows() == {
        ("one", "first"): ("0.5", "ok"),
        ("one", "second"): ("text", ""),
        ("one", "third"): ("needs CUDA", "skipped"),
        ("two", "first"): ("0.5", "ok"),
        ("two", "second"): ("2", ""),
        ("two", "third"): ("needs CUDA", "skipped"),
    }
    assert read(kit.out)[0]["expected"] == "<= 1"
    assert sorted(file.name for file in kit.out.iterdir()) == ["results.csv", "run.log"]


def test_a_stage_that_hangs_is_killed_with_its_child_processes(kit, tmp_path):
    kit.stages(timeout=1.5, one=HANGS, two=PASSES)
    process = kit.run()
    assert process.returncode == 1
    rows = kit.rows()
    assert rows["one", "first"] == ("0.5", "ok"), "the row was sent before the stage hung"
    assert rows["one", "second"][1] == "failed"
    assert rows["one", "second"][0].startswith("killed after")
    assert rows["two", "second"] == ("text", "")
    assert not processes_with(tmp_path)


def test_processes_that_a_stage_leaves_running_are_killed(kit, tmp_path):
    leaves_process = HANGS.replace("subprocess.run", "subprocess.Popen").replace("])", "], start_new_session=True)")
    kit.stages(one=f"{leaves_process}\n{PASSES}", two=PASSES)
    assert kit.run().returncode == 0
    assert not processes_with(tmp_path)


def test_a_stage_that_does_not_fit_the_budget_is_skipped(kit):
    kit.stages(seconds=6, one=f"time.sleep(3)\n{PASSES}", two=PASSES)
    process = kit.run("--budget", "8")
    assert process.returncode == 0, process.stderr
    rows = kit.rows()
    assert rows["one", "second"] == ("text", "")
    assert {rows["two", case][1] for case in ("first", "second", "third")} == {"skipped"}
    assert rows["two", "first"][0].endswith("s of the budget are left, 6 s are planned")


def test_a_stage_that_raises_fails_only_its_own_rows(kit):
    kit.stages(one="raise RuntimeError", two=PASSES)
    assert kit.run().returncode == 1
    assert kit.rows()["one", "second"] == ("the stage exited with code 1", "failed")
    assert kit.rows()["two", "second"] == ("text", "")
    assert "RuntimeError" in (kit.out / "run.log").read_text()


def test_stages_measure_one_at_a_time(kit, tmp_path):
    log = "pathlib.Path({file!r}).open('a').write('{name} {event} ')\n"
    body = "{start}time.sleep(1)\n{end}stage.row('second', 'metric', 1)"
    bodies = {
        name: body.format(
            start=log.format(file=str(tmp_path / "log"), name=name, event="starts"),
            end=log.format(file=str(tmp_path / "log"), name=name, event="ends"),
        )
        for name in ("one", "two", "three")
    }
    kit.stages(**bodies)
    assert kit.run().returncode == 0
    assert (tmp_path / "log").read_text() == "one starts one ends two starts two ends three starts three ends "


def test_rows_are_flushed_and_ctrl_c_kills_all_processes(kit, tmp_path):
    kit.stages(timeout=100, one=HANGS, two=PASSES)
    process = subprocess.Popen(kit.command(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (kit.out.exists() and kit.rows()):
        time.sleep(0.05)
    assert kit.rows() == {("one", "first"): ("0.5", "ok")}
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (1, "run.py: interrupted\n")
    assert kit.rows()["one", "second"] == ("interrupted", "failed")
    assert not processes_with(tmp_path)


def test_an_unknown_stage_is_a_user_error(kit):
    kit.stages(one=PASSES)
    process = kit.run("--stages", "one,tow")
    assert (process.returncode, process.stderr) == (2, "run.py: --stages: no stage 'tow'; the stages are one\n")
    assert not kit.out.exists()


@pytest.mark.long
def test_dry_run_passes_all_cases_that_need_no_gpu(tmp_path):
    command = [sys.executable, str(KIT / "run.py"), "--dry", "--budget", "1500", "--out", str(tmp_path)]
    process = subprocess.run(command, capture_output=True, text=True, timeout=1600, check=False)
    log = (tmp_path / "run.log").read_text()[-3000:]
    assert process.returncode == 0, f"{process.stdout}\n{process.stderr}\n{log}"
    rows = read(tmp_path)
    assert "failed" not in {row["ok"] for row in rows}
    assert len(list(tmp_path.iterdir())) <= 8
    command = [sys.executable, "-c", LIST_CASES]
    cases = subprocess.run(command, cwd=KIT, capture_output=True, text=True, check=True).stdout.splitlines()
    assert Counter(f"{row['stage']}|{row['case']}|{row['metric']}" for row in rows) == Counter(cases)
    for row in rows:
        if row["ok"] == "skipped":
            assert row["value"] == "needs CUDA" or row["value"].startswith("no "), row
        elif row["stage"] in TESTED_ON_A_CPU:
            assert row["ok"] == "ok" or not row["expected"], row


LIST_CASES = """
import importlib, stages
for name in stages.NAMES:
    for case in importlib.import_module(f"stages.{name}").CASES:
        print(name, case.name, case.metric, sep="|")
"""
