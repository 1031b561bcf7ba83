"""Checkpoints are written atomically, a failed write keeps the previous one, and intervals between validations work."""

import errno
import os
import signal
import time
from pathlib import Path

import pytest
import torch

from chargpt.errors import TrainingError
from chargpt.runs.directory import RunDirectory
from chargpt.runs.score import Monitor
from chargpt.training.callbacks.checkpoint import CheckpointCallback, ChecksumCheckpointIO
from chargpt.training.callbacks.metrics import MetricsCallback
from chargpt.training.callbacks.timer import TrainingTimer
from chargpt.training.loggers.csv_history import CSVHistory
from tests.conftest import process
from tests.training import run_artifacts


@pytest.fixture
def io() -> ChecksumCheckpointIO:
    return ChecksumCheckpointIO()


def test_a_checkpoint_is_saved_and_loaded(io, tmp_path: Path):
    content = {"weights": torch.arange(5.0), "step": 3, "names": ["a", "b"]}
    io.save_checkpoint(content, tmp_path / "checkpoints" / "last.ckpt")
    loaded = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert torch.equal(loaded.pop("weights"), content.pop("weights"))
    assert loaded == content
    assert (tmp_path / "checkpoints" / "last.ckpt").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("step", ["save", "fsync", "replace"])
def test_on_a_full_disk_the_old_checkpoint_remains_without_temporary_files(io, tmp_path: Path, monkeypatch, step):
    path = tmp_path / "last.ckpt"
    io.save_checkpoint({"step": 1}, path)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    targets = {"save": (torch, "save"), "fsync": (os, "fsync"), "replace": (Path, "replace")}
    monkeypatch.setattr(*targets[step], full)
    with pytest.raises(TrainingError, match="No space left"):
        io.save_checkpoint({"step": 2}, path)
    assert torch.load(path, weights_only=True) == {"step": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]


def test_a_checkpoint_is_replaced_and_never_modified_in_place(io, tmp_path: Path):
    """best.ckpt and previous.ckpt are hard links to files that were last.ckpt before."""
    last, best = tmp_path / "last.ckpt", tmp_path / "best.ckpt"
    io.save_checkpoint({"step": 1}, last)
    best.hardlink_to(last)
    io.save_checkpoint({"step": 2}, last)
    assert torch.load(best, weights_only=True) == {"step": 1}
    assert torch.load(last, weights_only=True) == {"step": 2}


def test_checkpoints_are_copied_if_hard_links_are_not_supported(run_cli, tiny, tmp_path: Path, monkeypatch):
    def refused(*_):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(Path, "hardlink_to", refused)
    overrides = ["trainer.max_steps=6", "trainer.val_check_interval=2", "hydra.run.dir=run"]
    outcome = run_cli("train", *tiny, *overrides)
    assert outcome.code == 0, outcome.err
    directory = tmp_path / "run" / "checkpoints"
    assert {p.name for p in directory.glob("*.ckpt")} == {"last.ckpt", "previous.ckpt", "best.ckpt"}
    steps = {
        name: torch.load(directory / f"{name}.ckpt", weights_only=True)["global_step"] for name in ("last", "previous")
    }
    assert steps == {"last": 6, "previous": 4}


def saved_steps(run: Path) -> tuple[int, int]:
    """The steps of last.ckpt and previous.ckpt."""
    last, previous = (run_artifacts.checkpoint(run, name)["global_step"] for name in ("last", "previous"))
    return last, previous


def fault_after(step: int) -> list[str]:
    target = "tests.training.fault_injection.RaiseAfterStep"
    return [f"+callbacks.fault._target_={target}", f"+callbacks.fault.step={step}"]


@pytest.mark.parametrize(
    ("overrides", "steps"),
    [
        (["checkpoint.every_n_steps=3"], (15, 12)),
        (["checkpoint.every_n_steps=7"], (14, 10)),  # 10: a validation
        (["checkpoint.every_n_steps=3", "trainer.accumulate_grad_batches=2"], (15, 12)),
        (["checkpoint.every_minutes=1e-9"], (16, 15)),
        ([], (10, 10)),
    ],
)
def test_checkpoints_are_saved_between_validations(run_cli, tiny, tmp_path: Path, overrides, steps):
    with pytest.raises(RuntimeError, match="a part is broken"):
        run_cli("train", *tiny, *fault_after(17), *overrides, "hydra.run.dir=run")
    directory = tmp_path / "run"
    assert run_artifacts.checkpoint(directory)["global_step"] == steps[0]
    if overrides:
        assert saved_steps(directory) == steps
    assert run_artifacts.checkpoint(directory, "best")["global_step"] == 10


def test_a_clock_is_due_once_per_interval(tmp_path: Path, monkeypatch):
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    run = RunDirectory(tmp_path)
    metrics_callback = MetricsCallback(TrainingTimer(None), CSVHistory(run.history), Monitor("val_loss", "min"))
    checkpoints = CheckpointCallback(run, metrics_callback, {}, every_minutes=2.0)
    due = []
    for now in (60.0, 119.0, 121.0, 122.0, 240.0, 242.0):  # noqa: B007 - read by the clock
        due.append(checkpoints.time_is_due())
    assert due == [False, False, True, False, False, True]


@pytest.mark.slow
def test_the_interval_may_change_when_a_run_is_resumed_and_is_otherwise_kept(run_cli, tiny, tmp_path: Path):
    run = tmp_path / "run"
    for overrides, step, saved in (
        ([*tiny, "checkpoint.every_n_steps=4", "hydra.run.dir=run"], 6, 4),
        (["resume=run"], 9, 8),
        (["resume=run", "checkpoint.every_n_steps=3"], 19, 18),
    ):
        with pytest.raises(RuntimeError, match="a part is broken"):
            run_cli("train", *overrides, *fault_after(step))
        assert run_artifacts.checkpoint(run)["global_step"] == saved


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 2])
def test_a_run_killed_between_validations_resumes_to_the_same_bits(tiny, tmp_path: Path, devices):
    kill = ["+callbacks.kill._target_=tests.training.fault_injection.FailRank", "+callbacks.kill.rank=0"]
    kill += ["+callbacks.kill.step=17", "+callbacks.kill.how=SIGKILL"]
    overrides = [*tiny, f"trainer.devices={devices}", "callbacks.samples.max_new_tokens=0"]
    assert process(tmp_path, "train", *overrides, "hydra.run.dir=expected").code == 0
    killed = process(tmp_path, "train", *overrides, "hydra.run.dir=run", "checkpoint.every_n_steps=3", *kill)
    assert killed.code == (-signal.SIGKILL if devices == 1 else 1)
    run, expected = tmp_path / "run", tmp_path / "expected"
    assert saved_steps(run) == (15, 12)
    assert process(tmp_path, "train", "resume=run").code == 0
    assert not run_artifacts.differences(run_artifacts.training_state(run), run_artifacts.training_state(expected))
    columns = ("step", "train_loss", "val_loss", "lr", "grad_norm")
    assert run_artifacts.history(run, *columns) == run_artifacts.history(expected, *columns)
