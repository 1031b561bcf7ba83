"""Tests of `latest`: the run that finished last, or that was active last."""

import os
from pathlib import Path

import pytest

from chargpt.errors import UserError
from chargpt.runs.latest import find_run


def finish(folder: Path, name: str, second: int, file: str = "metrics.json") -> Path:
    run = folder / "outputs" / name
    run.mkdir(parents=True, exist_ok=True)
    (run / file).write_text("{}")
    os.utime(run / file, (second, second))
    return Path("outputs") / name


@pytest.mark.parametrize("setting", ["run", "rerun"])
def test_the_latest_run_is_the_one_that_finished_last(tmp_path, monkeypatch, setting):
    monkeypatch.chdir(tmp_path)
    finish(tmp_path, "x/b", 1)
    latest = finish(tmp_path, "x/a", 2)
    finish(tmp_path, "debug/c", 3)
    finish(tmp_path, "x/d", 4, "status.json")
    assert find_run(setting, "latest") == latest


def test_the_latest_run_to_resume_is_the_one_that_was_active_last(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    finish(tmp_path, "b", 5)
    finish(tmp_path, "b", 1, "status.json")
    latest = finish(tmp_path, "a", 2, "status.json")
    finish(tmp_path, "debug/c", 3, "status.json")
    assert find_run("resume", "latest") == latest


def test_without_a_run_the_message_names_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"run=latest: there is no finished run in outputs/ \(current folder: /.*train"):
        find_run("run", "latest")
    with pytest.raises(UserError, match="resume=latest: there is no run in"):
        find_run("resume", "latest")
