"""Tests of the number of threads: that of the idle processors, used again when a run is resumed or repeated."""

import multiprocessing
import os
import time

import pytest
import torch

from chargpt.runs.directory import RunDirectory
from chargpt.training.setup import Origin, set_threads
from chargpt.utils import threads
from tests.training import run_artifacts


@pytest.fixture
def restored_threads(monkeypatch):
    """No setting in the environment, and torch's number of threads as before."""
    before = torch.get_num_threads()
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("idle", "default", "processes", "expected"),
    [(2, 2, 1, 2), (1.9, 2, 1, 2), (1.0, 2, 1, 1), (0.1, 2, 1, 1), (-3, 2, 1, 1), (15.2, 8, 1, 8), (15.2, 16, 4, 3)],
)
def test_the_number_is_that_of_the_idle_processors_and_not_above_torchs_own(idle, default, processes, expected):
    assert threads.choose(idle, default, processes) == expected


def test_a_quota_of_the_container_limits_the_processors(tmp_path):
    everything = threads.available_processors(tmp_path)
    (tmp_path / "cpu.max").write_text("50000 100000\n")
    assert threads.available_processors(tmp_path) == 0.5
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert threads.available_processors(tmp_path) == everything


def spin() -> None:
    while True:
        pass


def test_a_busy_program_is_measured_and_this_process_is_not(monkeypatch):
    measurement = threads.IdleProcessors()
    end = time.monotonic() + 1
    while time.monotonic() < end:  # this process
        pass
    before = measurement.measure()
    busy = multiprocessing.get_context("fork").Process(target=spin, daemon=True)
    busy.start()
    try:
        measurement = threads.IdleProcessors()
        time.sleep(2)
        # A child counts as this process once it has been waited for.
        assert measurement.measure() < (os.cpu_count() or 1) - 0.3
    finally:
        busy.kill()
        busy.join()
    assert 0 <= before <= threads.available_processors()


@pytest.mark.usefixtures("restored_threads")
def test_the_order_of_precedence(monkeypatch):
    monkeypatch.setattr(threads.measurement, "measure", lambda: 1.0)
    set_threads("auto", Origin())
    assert torch.get_num_threads() == 1
    set_threads("auto", Origin(threads=2))
    assert torch.get_num_threads() == min(2, os.cpu_count() or 1), "that of the saved run"
    set_threads(3, Origin(threads=2))
    assert torch.get_num_threads() == 3
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    set_threads("auto", Origin(threads=2))
    assert torch.get_num_threads() == 3
    monkeypatch.delenv("OMP_NUM_THREADS")
    set_threads("auto", Origin(threads=10**9))
    assert torch.get_num_threads() == os.cpu_count(), "the file may be a stranger's"


@pytest.mark.slow
@pytest.mark.usefixtures("restored_threads")
def test_a_resumed_and_a_repeated_run_use_the_threads_of_the_run(run_cli, tiny, tmp_path, monkeypatch):
    """Whatever a measurement would choose now."""
    monkeypatch.setattr(threads.measurement, "measure", lambda: 1.0)
    assert run_cli("train", *tiny, "trainer.threads=2", "hydra.run.dir=run").code == 0
    torch.set_num_threads(1)
    assert run_cli("train", "resume=run", "trainer.threads=auto", "trainer.max_steps=25").code == 0
    assert run_cli("train", "rerun=run", "trainer.threads=auto", "hydra.run.dir=again").code == 0
    for name in ("run", "again"):
        assert run_artifacts.checkpoint(tmp_path / name)["chargpt"]["threads"] == 2
        assert run_artifacts.provenance(tmp_path / name)["threads"] == 2
    assert run_cli("train", *tiny, "hydra.run.dir=new").code == 0
    assert run_artifacts.provenance(tmp_path / "new")["threads"] == 1
    assert RunDirectory(tmp_path / "new").path.is_dir()


def test_an_invalid_number_is_a_user_error(run_cli, tiny):
    for value in ("0", "many"):
        outcome = run_cli("train", *tiny, f"trainer.threads={value}")
        assert outcome.code == 2
        assert "trainer.threads" in outcome.err
