"""The console command `chargpt`, and the commands that messages print."""

import json
import re
import shlex
import subprocess
import sys

import pytest

from chargpt import invocation
from tests.conftest import REPO, process


@pytest.fixture
def console(monkeypatch):
    monkeypatch.setattr(invocation, "_console_command", "train")


def chargpt(folder, *arguments: str, **settings) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "chargpt", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False, **settings)


def output_of(folder, *command: str) -> str:
    """The standard output of a command, which must succeed."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout


@pytest.mark.parametrize("argument", ["--help", "-h", "--version"])
def test_flags_without_a_command(tmp_path, argument):
    done = chargpt(tmp_path, argument)
    assert (done.returncode, done.stderr) == (0, "")
    assert ("sample" in done.stdout) == (argument != "--version")


def test_an_unknown_command_is_a_user_error(tmp_path):
    done = chargpt(tmp_path, "trian", "seed=1")
    assert done.returncode == 2
    assert done.stderr == (
        "chargpt: there is no command 'trian'. The commands are train, sample, evaluate, compare, visualize, export\n"
    )


@pytest.mark.slow
def test_a_user_error_names_the_console_command_and_the_script(tmp_path):
    assert chargpt(tmp_path, "sample", "run=nowhere").stderr.startswith("chargpt sample: there is no run at nowhere")
    assert process(tmp_path, "sample", "run=nowhere").err.startswith("sample.py: there is no run at nowhere")


def test_help_of_a_command_shows_the_console_command(tmp_path):
    page = chargpt(tmp_path, "sample", "--help").stdout
    assert "chargpt sample run=" in page
    assert "python" not in page


@pytest.mark.slow
@pytest.mark.parametrize("train", [["-m", "chargpt", "train"], [str(REPO / "train.py")]], ids=["console", "script"])
def test_the_printed_commands_run_when_pasted(tmp_path, tiny, train):
    """The commands of a job of a sweep, whose directory has a name with `=` and `,`."""
    sweep = output_of(tmp_path, sys.executable, *train, "-m", "seed=1,2", "name=pair", "checkpoint=all", *tiny)
    jobs = sorted((tmp_path / "outputs" / "pair").glob("*=*,*/metrics.json"))
    assert len(jobs) == 2, sweep
    job = jobs[0].parent.relative_to(tmp_path)
    output = output_of(tmp_path, sys.executable, *train, f"resume={job}", "trainer.max_steps=21")
    printed = dict(re.findall(r"^ *(sample|resume)  (.+)$", output, re.MULTILINE))
    prompt = shlex.split(printed["sample"])[-1].removeprefix("prompt=")
    assert output_of(tmp_path, "sh", "-c", printed["sample"]).startswith(prompt)
    output_of(tmp_path, "sh", "-c", printed["resume"])
    steps = json.loads(jobs[0].read_text())["steps"]
    assert shlex.split(printed["resume"])[-2:] == [f"resume={job}", f"trainer.max_steps={steps}"]


def test_the_printed_command_of_the_console(console, monkeypatch):
    monkeypatch.setattr(invocation.shutil, "which", lambda name: str(invocation.Path(sys.executable).with_name(name)))
    assert invocation.command_line("sample", "run=a b") == "chargpt sample 'run=a b'"
    assert invocation.program_name() == "chargpt train"
    assert invocation.child_command() == [sys.executable, "-P", "-m", "chargpt", "train"]
    monkeypatch.setattr(invocation.shutil, "which", lambda name: None)
    *_, option, module, command, argument = shlex.split(invocation.command_line("sample", "run=a"))
    assert (option, module, command, argument) == ("-m", "chargpt", "sample", "run=a")


def test_the_printed_command_of_a_script_is_relative_only_below_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "train.py")])
    monkeypatch.chdir(tmp_path)
    assert shlex.split(invocation.command_line("sample", "run=a"))[-2:] == ["sample.py", "run=a"]
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    assert shlex.split(invocation.command_line("sample", "run=a"))[-2:] == [str(tmp_path / "sample.py"), "run=a"]


@pytest.mark.parametrize(("trust", "option"), [(["a"], "trust=a"), (["a", "b.c"], "trust=[a,b.c]")])
def test_printed_commands_carry_the_options_that_they_need(monkeypatch, trust, option):
    monkeypatch.setattr(invocation, "_config_dir", None)
    monkeypatch.setattr(invocation, "_trust", ())
    invocation.use_options("my conf", trust)
    assert shlex.split(invocation.command_line("sample", "run=x"))[-2:] == ["run=x", option]
    resume = shlex.split(invocation.command_line("train", "resume=x"))
    assert resume[-3:] == ["resume=x", "--config-dir=my conf", option]
    assert shlex.split(invocation.command_line("train"))[-1] == "--config-dir=my conf"  # composes its targets
    invocation.use_options(None, [])
    assert shlex.split(invocation.command_line("train", "resume=x"))[-1] == "resume=x"
