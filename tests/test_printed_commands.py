"""Every command that a program prints runs as it is printed, in the folder where it was printed."""

import ast
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPO, Outcome, process

SIGNAL = ["+callbacks.signal._target_=tests.training.fault_injection.SignalAt", "+callbacks.signal.name=SIGINT"]
SHORT = ["trainer.max_steps=2", "trainer.val_check_interval=1", "data.train_fraction=0.99", "model=gpt_nano"]
NAME = "it's a run, é=1"
# The functions that make a command to print, and the modules that call them; each is reached by a test below.
MAKERS = ("command_line", "tensorboard_command")
MODULES = {
    "api.py",  # an exception with the same text as that of train.py
    "cli/train.py",  # ranks that were interrupted before their first step: tests/cli/test_launcher.py
    "cli/visualize.py",
    "runs/directory.py",
    "runs/discover.py",
    "runs/latest.py",
    "runs/retention.py",  # tests/training/test_retention.py
    "sweeps/compare.py",
    "training/callbacks/interrupt.py",
    "training/outcome.py",  # the same text, for an interruption before the first step or by a second signal
    "training/report.py",
    "training/restore.py",
}


def test_every_module_that_prints_a_command_is_listed():
    root = REPO / "src" / "chargpt"
    found = set()
    for path in root.rglob("*.py"):
        calls = [node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        if any(isinstance(function, ast.Name) and function.id in MAKERS for function in calls):
            found.add(str(path.relative_to(root)))
    assert found <= MODULES


@pytest.fixture
def folder(tmp_path, text):
    """A folder outside the repository with a text, and a name that needs quotes."""
    folder = tmp_path / "my folder's"
    folder.mkdir()
    (folder / "my text.txt").write_text(text)
    return folder


def printed(outcome: Outcome) -> list[str]:
    """The commands in the output: from a Python program or `chargpt` to the end of the line."""
    lines = (outcome.out + outcome.err).splitlines()
    starts = [re.escape(sys.executable), "python", "chargpt", "tensorboard"]
    pattern = re.compile(rf"(?:^|[ :])((?:{'|'.join(starts)}) (?:/|\S+\.py|-m|--logdir).*)$")
    return [match[1] for line in lines if (match := pattern.search(line))]


def run_as_printed(command: str, folder: Path, *further: str) -> Outcome:
    shell = f"{command.partition('   (')[0]} {shlex.join(further)}"
    environment = os.environ | {"PYTHONPATH": str(REPO), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(shell, shell=True, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    return Outcome(done.returncode, done.stdout, done.stderr)


def train(folder: Path, tiny: list[str], *overrides: str) -> Outcome:
    settings = [override for override in tiny if not override.startswith("data.path=")]
    return process(folder, "train", *settings, "data.path=my text.txt", *overrides, PYTHONPATH=str(REPO))


@pytest.mark.slow
def test_the_commands_at_the_end_of_a_run(folder, tiny):
    outcome = train(folder, tiny, f"name={NAME}")
    assert outcome.code == 0, outcome.err
    sample, metrics, resume = printed(outcome)
    assert run_as_printed(sample, folder, "max_new_tokens=5").code == 0
    assert "--logdir" in metrics
    assert run_as_printed(metrics, folder, "--inspect").code == 0
    again = run_as_printed(resume, folder)
    assert again.code == 0, again.err
    assert "trainer.max_steps=80" in again.out

    finished = run_as_printed(resume, folder)
    assert finished.code == 2
    (longer,) = printed(finished)
    assert run_as_printed(longer, folder, "callbacks.samples.max_new_tokens=0").code == 0
    run = next((folder / "outputs").rglob("metrics.json")).parent.relative_to(folder)
    exists = train(folder, tiny, f"hydra.run.dir={run}")
    assert exists.code == 2
    (resume,) = printed(exists)
    assert "has already trained" in run_as_printed(resume, folder).err
    view = process(folder, "visualize", f"run={run}")
    assert view.code == 0, view.err
    assert run_as_printed(printed(view)[0], folder, "--inspect").code == 0


@pytest.mark.slow
def test_the_command_of_an_interrupted_run(folder, tiny):
    outcome = train(folder, tiny, f"name={NAME}", *SIGNAL, "+callbacks.signal.batch=5")
    assert outcome.code == 3
    (command,) = printed(outcome)
    assert run_as_printed(command, folder).code == 0


@pytest.mark.slow
def test_the_commands_after_a_sweep(folder, tiny):
    outcome = train(folder, tiny, "-m", "optimizer.lr=0.1,0.01", f"name={NAME.replace(',', '')}")
    assert outcome.code == 0, outcome.err
    (sample,) = printed(outcome)
    assert run_as_printed(sample, folder, "max_new_tokens=5").code == 0


@pytest.mark.slow
@pytest.mark.parametrize("program", ["sample", "compare"])
def test_the_commands_where_there_is_no_run(folder, program):
    outcome = process(folder, program, *(["runs=."] if program == "compare" else []))
    assert outcome.code == 2
    (command,) = printed(outcome)
    short = [override.replace("model=gpt_nano", "model=bigram") for override in SHORT]
    further = ["model.block_size=4,8"] if program == "compare" else []
    command = command.replace("model.n_layer=2,4", "")
    done = run_as_printed(command, folder, *short, *further, "callbacks.samples.max_new_tokens=0")
    assert done.code == 0, done.err
