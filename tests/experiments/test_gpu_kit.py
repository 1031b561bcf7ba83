"""The GPU kit: its orchestrator with fake stages, and the complete kit without a GPU."""

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
CPU_STAGES = ("agree", "resume", "ranks", "sampling", "faults")  # verified on a CPU, too
# A fake torch, so that the stages of these tests start at once.
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
GOOD = 'stage.row("second", "metric", "a word")'
HANGS = "subprocess.run([sys.executable, '-c', 'import time; time.sleep(1000)', str(stage.work)])"


class Kit:
    """A copy of run.py and kit.py with the stages of a test."""

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
        """`value` and `ok` of each stage and case."""
        return {(row["stage"], row["case"]): (row["value"], row["ok"]) for row in read(self.out)}


def read(out: Path) -> list[dict[str, str]]:
    with (out / "results.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def kit(tmp_path: Path) -> Kit:
    return Kit(tmp_path)


def processes_with(path: Path) -> str:
    listed = subprocess.run(["ps", "-ef"], capture_output=True, text=True, check=True).stdout
    return "\n".join(line for line in listed.splitlines() if str(path) in line)


def test_each_case_has_a_row_with_its_result(kit):
    kit.stages(one=GOOD, two='stage.row("second", "metric", 2)')
    result = kit.run()
    assert result.returncode == 0, result.stderr
    assert kit.rows() == {
        ("one", "first"): ("0.5", "ok"),
        ("one", "second"): ("a word", ""),
        ("one", "third"): ("needs CUDA", "skipped"),
        ("two", "first"): ("0.5", "ok"),
        ("two", "second"): ("2", ""),
        ("two", "third"): ("needs CUDA", "skipped"),
    }
    assert read(kit.out)[0]["expected"] == "<= 1"
    assert sorted(file.name for file in kit.out.iterdir()) == ["results.csv", "run.log"]


def test_a_hanging_stage_is_killed_with_its_child_processes(kit, tmp_path):
    kit.stages(timeout=1.5, one=HANGS, two=GOOD)
    result = kit.run()
    assert result.returncode == 1
    rows = kit.rows()
    assert rows["one", "first"] == ("0.5", "ok"), "reported before it hung"
    assert rows["one", "second"][1] == "failed"
    assert rows["one", "second"][0].startswith("killed after")
    assert rows["two", "second"] == ("a word", "")
    assert not processes_with(tmp_path)


def test_processes_that_a_stage_leaves_running_are_killed(kit, tmp_path):
    background = HANGS.replace("subprocess.run", "subprocess.Popen").replace("])", "], start_new_session=True)")
    kit.stages(one=f"{background}\n{GOOD}", two=GOOD)
    assert kit.run().returncode == 0
    assert not processes_with(tmp_path)


def test_stages_that_exceed_the_budget_are_skipped(kit):
    kit.stages(seconds=6, one=f"time.sleep(3)\n{GOOD}", two=GOOD)
    result = kit.run("--budget", "8")
    assert result.returncode == 0, result.stderr
    rows = kit.rows()
    assert rows["one", "second"] == ("a word", "")
    assert {rows["two", case][1] for case in ("first", "second", "third")} == {"skipped"}
    assert rows["two", "first"][0].startswith("the budget has")


def test_an_error_in_a_stage_fails_only_the_rows_of_that_stage(kit):
    kit.stages(one="raise RuntimeError", two=GOOD)
    assert kit.run().returncode == 1
    assert kit.rows()["one", "second"] == ("the stage ended with exit code 1", "failed")
    assert kit.rows()["two", "second"] == ("a word", "")
    assert "RuntimeError" in (kit.out / "run.log").read_text()


def test_only_one_stage_measures_at_a_time(kit, tmp_path):
    note = "pathlib.Path({file!r}).open('a').write('{name} {what} ')\n"
    body = "{start}time.sleep(1)\n{end}stage.row('second', 'metric', 1)"
    bodies = {
        name: body.format(
            start=note.format(file=str(tmp_path / "notes"), name=name, what="starts"),
            end=note.format(file=str(tmp_path / "notes"), name=name, what="ends"),
        )
        for name in ("one", "two", "three")
    }
    kit.stages(**bodies)
    assert kit.run().returncode == 0
    assert (tmp_path / "notes").read_text() == "one starts one ends two starts two ends three starts three ends "


def test_rows_are_written_at_once_and_ctrl_c_ends_all_processes(kit, tmp_path):
    kit.stages(timeout=100, one=HANGS, two=GOOD)
    process = subprocess.Popen(kit.command(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (kit.out.exists() and kit.rows()):
        time.sleep(0.05)
    assert kit.rows() == {("one", "first"): ("0.5", "ok")}
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert (process.returncode, stderr) == (1, "run.py: interrupted\n")
    assert kit.rows()["one", "second"] == ("interrupted", "failed")
    assert not processes_with(tmp_path)


def test_an_unknown_stage_is_a_user_error(kit):
    kit.stages(one=GOOD)
    result = kit.run("--stages", "one,tow")
    assert (result.returncode, result.stderr) == (2, "run.py: no stage 'tow': the stages are one\n")
    assert not kit.out.exists()


@pytest.mark.slow
def test_the_kit_passes_without_a_gpu(tmp_path):
    command = [sys.executable, str(KIT / "run.py"), "--dry", "--budget", "1500", "--out", str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=1600, check=False)
    log = (tmp_path / "run.log").read_text()[-3000:]
    assert result.returncode == 0, f"{result.stdout}\n{result.stderr}\n{log}"
    rows = read(tmp_path)
    assert "failed" not in {row["ok"] for row in rows}
    assert len(list(tmp_path.iterdir())) <= 8
    listed = subprocess.run(
        [sys.executable, "-c", LIST], cwd=KIT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert Counter(f"{row['stage']}|{row['case']}|{row['metric']}" for row in rows) == Counter(listed)
    for row in rows:
        if row["ok"] == "skipped":
            assert row["value"] == "needs CUDA" or row["value"].startswith("no "), row
        elif row["stage"] in CPU_STAGES:
            assert row["ok"] == "ok" or not row["expected"], row


LIST = """
import importlib, stages
for name in stages.NAMES:
    for case in importlib.import_module(f"stages.{name}").CASES:
        print(name, case.name, case.metric, sep="|")
"""
