"""The run directory: one run's alone, whoever else wants the name."""

import json
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from chargpt.errors import UserError
from chargpt.runs.directory import RunDirectory


def max_parallel_jobs(work: Callable[[], RunDirectory], count: int) -> list[RunDirectory]:
    """What `work` makes in `count` threads that begin together."""
    start, made = threading.Barrier(count), []

    def one():
        start.wait()
        made.append(work())

    threads = [threading.Thread(target=one) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == count
    return made


def test_the_first_run_gets_the_name_and_the_next_ones_a_suffix(tmp_path: Path):
    names = []
    for _ in range(3):
        run = RunDirectory(tmp_path / "outputs" / "gpt" / "12-00-00")
        run.claim(chosen=False)
        run.write_status("running", 0)
        names.append(run.path.name)
    assert names == ["12-00-00", "12-00-00_2", "12-00-00_3"]


def test_a_run_with_a_suffix_keeps_all_its_files_there(tmp_path: Path):
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


def test_runs_that_claim_one_name_at_the_same_moment_get_different_directories(tmp_path: Path):
    def claimed() -> RunDirectory:
        run = RunDirectory(tmp_path / "outputs" / "run")
        run.claim(chosen=False)
        return run

    for _ in range(20):
        made = max_parallel_jobs(claimed, 4)
        assert len({run.path for run in made}) == 4
        assert all(run.path.is_dir() for run in made)


def test_a_place_that_was_chosen_and_holds_a_run_is_a_mistake(tmp_path: Path):
    RunDirectory(tmp_path / "mine").claim(chosen=True)
    (tmp_path / "mine" / "status.json").touch()
    with pytest.raises(UserError, match=r"mine is already there.*resume="):
        RunDirectory(tmp_path / "mine").claim(chosen=True)
    assert [p.name for p in tmp_path.iterdir()] == ["mine"]


def test_a_chosen_folder_that_is_empty_is_taken(tmp_path: Path):
    run = RunDirectory(tmp_path)
    run.claim(chosen=True)
    assert run.path == tmp_path


@pytest.mark.parametrize("chosen", [True, False])
def test_a_place_inside_a_file_is_a_mistake(tmp_path: Path, chosen):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot be made.*hydra.run.dir="):
        RunDirectory(tmp_path / "file" / "run").claim(chosen)


def test_a_status_says_state_step_reason_time_and_who(tmp_path: Path):
    run = RunDirectory(tmp_path)
    run.write_status("interrupted", 7, "SIGINT")
    written = json.loads((tmp_path / "status.json").read_text())
    assert (written["state"], written["step"], written["reason"]) == ("interrupted", 7, "SIGINT")
    assert written["pid"] == os.getpid()
    assert written["time"] == pytest.approx(Path(tmp_path / "status.json").stat().st_mtime, abs=60)
    assert run.read_status() == written


def test_a_state_that_the_contract_does_not_know_is_not_written(tmp_path: Path):
    with pytest.raises(AssertionError):
        RunDirectory(tmp_path).write_status("tired", 7)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", [None, "", '{"state": "runn'])
def test_a_status_that_is_missing_or_torn_reads_as_failed(tmp_path: Path, content):
    if content is not None:
        (tmp_path / "status.json").write_text(content)
    assert RunDirectory(tmp_path).read_status()["state"] == "failed"
