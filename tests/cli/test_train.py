"""train.py: the run directories of runs that start at the same time, and resume=auto."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPO, process
from tests.training import run_artifacts
from tests.training.conftest import one_thread, short_samples  # noqa: F401 - fixtures

QUIET = "callbacks.samples.max_new_tokens=0"


def train_in_parallel(folder: Path, *runs: list[str]) -> list[tuple[int, str]]:
    """Starts train.py with each list of overrides at the same time: exit codes, and last lines on stderr."""
    processes = [
        subprocess.Popen(
            [sys.executable, str(REPO / "train.py"), *overrides], cwd=folder, stderr=subprocess.PIPE, text=True
        )
        for overrides in runs
    ]
    errors = [process.communicate(timeout=300)[1] for process in processes]
    return [(process.returncode, err.strip().splitlines()[-1]) for process, err in zip(processes, errors, strict=True)]


@pytest.mark.slow
def test_runs_that_start_at_the_same_time_have_separate_directories(tiny, tmp_path):
    outcomes = train_in_parallel(tmp_path, *([*tiny, QUIET, "name=par", f"seed={seed}"] for seed in range(8)))
    assert {code for code, _ in outcomes} == {0}, outcomes
    runs = list((tmp_path / "outputs" / "par").iterdir())
    assert len(runs) == 8
    assert len({run.name[:19] for run in runs}) < 8, "no two runs started in the same second"
    assert {run_artifacts.metrics(run)["seed"] for run in runs} == set(range(8))
    for run in runs:
        assert [row["step"] for row in run_artifacts.history(run)] == ["1", "5", "10", "15", "20"]
        assert len(run_artifacts.event_files(run)) == 1


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 2])
def test_only_one_of_several_runs_trains_in_the_same_directory(tiny, tmp_path, devices):
    overrides = [*tiny, QUIET, "hydra.run.dir=run", f"trainer.devices={devices}"]
    outcomes = train_in_parallel(tmp_path, overrides, overrides, overrides)
    assert sorted(code for code, _ in outcomes) == [0, 2, 2], outcomes
    for _, line in (outcome for outcome in outcomes if outcome[0] == 2):
        assert "another process is training in" in line or "already exists" in line
    assert [row["step"] for row in run_artifacts.history(tmp_path / "run")] == ["1", "5", "10", "15", "20"]


@pytest.mark.slow
def test_resume_auto_uses_the_same_directory_for_the_same_settings(run_cli, tiny, tmp_path):
    overrides = [*tiny, QUIET, "resume=auto"]
    assert run_cli("train", *overrides).code == 0
    (run,) = (tmp_path / "outputs" / "gpt_nano").iterdir()
    assert run_artifacts.status(run)["state"] == "finished"
    assert len(run_artifacts.history(run)) == 5
    modified = (run / "metrics.json").stat().st_mtime_ns
    assert run_cli("train", *overrides).code == 0
    assert (run / "metrics.json").stat().st_mtime_ns == modified, "the run was already finished"
    assert run_cli("train", *overrides, "trainer.max_steps=30").code == 0
    assert run_artifacts.metrics(run)["steps"] == 30
    assert run_cli("train", *overrides, "seed=7").code == 0
    assert len(list((tmp_path / "outputs" / "gpt_nano").iterdir())) == 2


def test_resume_auto_trains_to_the_length_of_a_changed_recipe(run_cli, tiny, tmp_path):
    recipe = tmp_path / "my_conf" / "recipe" / "mine.yaml"
    recipe.parent.mkdir(parents=True)
    overrides = [override for override in tiny if not override.startswith("trainer.max_steps")]
    overrides += ["--config-dir=my_conf", "recipe=mine", "resume=auto", "hydra.run.dir=run"]
    for steps in (4, 6):
        defaults = "# @package _global_\ndefaults:\n  - gpt_nano\n"
        recipe.write_text(f"{defaults}trainer:\n  max_steps: {steps}\n")
        assert run_cli("train", *overrides).code == 0
        assert run_artifacts.metrics(tmp_path / "run")["steps"] == steps


def test_a_user_error_during_set_up_leaves_no_directory(run_cli, tiny, tmp_path):
    for overrides in ([], ["resume=auto"], ["hydra.run.dir=here"]):
        outcome = run_cli("train", *tiny, "model.n_head=3", *overrides)
        assert outcome.code == 2
        assert list(tmp_path.iterdir()) == []


# A module that Python imports at its start. Some libraries catch every exception in an import, or abort in C++ code.
SIGNAL_DURING_IMPORT = """
import os, signal, sys

class Finder:
    @staticmethod
    def find_spec(name, path, target=None):
        if name == "numpy.exceptions":
            try:
                os.kill(os.getpid(), signal.SIGTERM)
                sum(range(1000))  # Python runs the handler
            except BaseException:
                os._exit(99)

sys.meta_path.insert(0, Finder)
"""


@pytest.mark.slow
def test_a_signal_raises_no_exception_inside_an_import(tiny, tmp_path):
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "sitecustomize.py").write_text(SIGNAL_DURING_IMPORT)
    outcome = process(tmp_path, "train", *tiny, PYTHONPATH=str(tmp_path / "modules"))
    assert (outcome.code, outcome.err) == (3, "train.py: interrupted\n")
    assert not list(tmp_path.glob("outputs/*/*"))
