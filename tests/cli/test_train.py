"""Where a run begins: a directory that is its own, also where others begin at the same moment."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPO
from tests.training import run_artifacts
from tests.training.conftest import one_thread, short_samples  # noqa: F401 - fixtures

QUIET = "callbacks.samples.max_new_tokens=0"


def max_parallel_jobs(folder: Path, *commands: list[str]) -> list[tuple[int, str]]:
    """Exit codes of train.py, started together, and the last lines that they wrote."""
    started = [
        subprocess.Popen(
            [sys.executable, str(REPO / "train.py"), *words], cwd=folder, stderr=subprocess.PIPE, text=True
        )
        for words in commands
    ]
    said = [process.communicate(timeout=300)[1] for process in started]
    return [(process.returncode, text.strip().splitlines()[-1]) for process, text in zip(started, said, strict=True)]


@pytest.mark.slow
def test_runs_that_begin_at_once_have_a_whole_directory_each(tiny, tmp_path):
    ended = max_parallel_jobs(tmp_path, *([*tiny, QUIET, "name=par", f"seed={seed}"] for seed in range(20)))
    assert {code for code, _ in ended} == {0}, ended
    runs = list((tmp_path / "outputs" / "par").iterdir())
    assert len(runs) == 20
    assert len({run.name[:19] for run in runs}) < 20, "none began in the same second"
    assert {run_artifacts.metrics(run)["seed"] for run in runs} == set(range(20))
    for run in runs:
        assert [row["step"] for row in run_artifacts.history(run)] == ["1", "5", "10", "15", "20"]
        assert len(list((run / "tensorboard").iterdir())) == 1


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 2])
def test_of_runs_with_one_directory_one_trains_and_the_others_are_refused(tiny, tmp_path, devices):
    words = [*tiny, QUIET, "hydra.run.dir=run", f"trainer.devices={devices}"]
    ended = max_parallel_jobs(tmp_path, words, words, words)
    assert sorted(code for code, _ in ended) == [0, 2, 2], ended
    for _, line in (one for one in ended if one[0] == 2):
        assert "is being trained by another process" in line or "already exists" in line
    assert [row["step"] for row in run_artifacts.history(tmp_path / "run")] == ["1", "5", "10", "15", "20"]


def test_resume_auto_finds_the_directory_of_the_same_settings(run_cli, tiny, tmp_path):
    words = [*tiny, QUIET, "resume=auto"]
    assert run_cli("train", *words).code == 0
    (run,) = (tmp_path / "outputs" / "gpt_nano").iterdir()
    assert run_artifacts.status(run)["state"] == "finished"
    assert len(run_artifacts.history(run)) == 5
    before = (run / "metrics.json").stat().st_mtime_ns
    assert run_cli("train", *words).code == 0
    assert (run / "metrics.json").stat().st_mtime_ns == before, "it is finished already"
    assert run_cli("train", *words, "trainer.max_steps=30").code == 0
    assert run_artifacts.metrics(run)["steps"] == 30
    assert run_cli("train", *words, "seed=7").code == 0
    assert len(list((tmp_path / "outputs" / "gpt_nano").iterdir())) == 2


def test_a_mistake_that_is_seen_late_leaves_no_directory(run_cli, tiny, tmp_path):
    for words in ([], ["resume=auto"], ["hydra.run.dir=here"]):
        outcome = run_cli("train", *tiny, "model.n_head=3", *words)
        assert outcome.code == 2
        assert list(tmp_path.iterdir()) == []
