"""Checkpoint files are written atomically, and a failed write keeps the previous checkpoint."""

import errno
import os
from pathlib import Path

import pytest
import torch

from chargpt.errors import TrainingError
from chargpt.training.callbacks.checkpoint import ChecksumCheckpointIO


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
    assert {p.name for p in directory.iterdir()} == {"last.ckpt", "previous.ckpt", "best.ckpt"}
    steps = {
        name: torch.load(directory / f"{name}.ckpt", weights_only=True)["global_step"] for name in ("last", "previous")
    }
    assert steps == {"last": 6, "previous": 4}
