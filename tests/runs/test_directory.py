"""The run directory: each is claimed by one run, even if several processes request the same name."""

import json
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from chargpt.errors import UserError
from chargpt.runs.directory import RunDirectory


def run_in_threads(function: Callable[[], RunDirectory], count: int) -> list[RunDirectory]:
    """The results of `function` in `count` threads that start simultaneously."""
    start, results = threading.Barrier(count), []

    def call():
        start.wait()
        results.append(function())

    threads = [threading.Thread(target=call) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == count
    return results


def test_the_first_run_gets_the_name_and_later_runs_a_suffix(tmp_path: Path):
    names = []
    for _ in range(3):
        run = RunDirectory(tmp_path / "outputs" / "gpt" / "12-00-00")
        run.claim(chosen=False)
        run.write_status("running", 0)
        names.append(run.path.name)
    assert names == ["12-00-00", "12-00-00_2", "12-00-00_3"]


def test_a_run_with_a_suffix_has_all_its_files_in_its_directory(tmp_path: Path):
    (tmp_path / "run").mkdir()
    run = RunDirectory(tmp_path / "run")
    run.claim(chosen=False)
    files = (
        run.checkpoints,
        run.last,
        run.previous,
        run.best,
        run.metrics,
        run.status_file,
        run.sample,
        run.history,
    )
    assert run.path.is_dir()
    assert run.path != tmp_path / "run"
    assert all(run.path in file.parents for file in files)


def test_runs_that_claim_a_name_simultaneously_get_different_directories(tmp_path: Path):
    def claim() -> RunDirectory:
        run = RunDirectory(tmp_path / "outputs" / "run")
        run.claim(chosen=False)
        return run

    for _ in range(20):
        runs = run_in_threads(claim, 4)
        assert len({run.path for run in runs}) == 4
        assert all(run.path.is_dir() for run in runs)


def test_a_chosen_directory_that_contains_a_run_is_a_user_error(tmp_path: Path):
    RunDirectory(tmp_path / "mine").claim(chosen=True)
    (tmp_path / "mine" / "status.json").touch()
    with pytest.raises(UserError, match=r"mine already exists.*resume="):
        RunDirectory(tmp_path / "mine").claim(chosen=True)
    assert [p.name for p in tmp_path.iterdir()] == ["mine"]


def test_a_chosen_empty_directory_is_used(tmp_path: Path):
    run = RunDirectory(tmp_path)
    run.claim(chosen=True)
    assert run.path == tmp_path


@pytest.mark.parametrize("chosen", [True, False])
def test_a_path_below_a_file_is_a_user_error(tmp_path: Path, chosen):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot be created.*hydra.run.dir="):
        RunDirectory(tmp_path / "file" / "run").claim(chosen)


def test_a_status_contains_state_step_reason_time_and_process(tmp_path: Path):
    run = RunDirectory(tmp_path)
    run.write_status("interrupted", 7, "SIGINT")
    written = json.loads((tmp_path / "status.json").read_text())
    assert (written["state"], written["step"], written["reason"]) == ("interrupted", 7, "SIGINT")
    assert written["pid"] == os.getpid()
    assert written["time"] == pytest.approx(Path(tmp_path / "status.json").stat().st_mtime, abs=60)
    assert run.read_status() == written


def test_an_unknown_state_is_not_written(tmp_path: Path):
    with pytest.raises(AssertionError):
        RunDirectory(tmp_path).write_status("unknown", 7)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", [None, "", '{"state": "runn'])
def test_a_missing_or_damaged_status_is_read_as_failed(tmp_path: Path, content):
    if content is not None:
        (tmp_path / "status.json").write_text(content)
    assert RunDirectory(tmp_path).read_status()["state"] == "failed"
