"""Checkpoint files: whole or absent, and a last state that never takes the one before with it."""

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


def test_what_is_saved_is_loaded(io, tmp_path: Path):
    content = {"weights": torch.arange(5.0), "step": 3, "names": ["a", "b"]}
    io.save_checkpoint(content, tmp_path / "checkpoints" / "last.ckpt")
    loaded = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert torch.equal(loaded.pop("weights"), content.pop("weights"))
    assert loaded == content
    assert (tmp_path / "checkpoints" / "last.ckpt").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("step", ["save", "fsync", "replace"])
def test_a_full_disk_leaves_the_old_checkpoint_and_nothing_else(io, tmp_path: Path, monkeypatch, step):
    path = tmp_path / "last.ckpt"
    io.save_checkpoint({"step": 1}, path)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    where = {"save": (torch, "save"), "fsync": (os, "fsync"), "replace": (Path, "replace")}
    monkeypatch.setattr(*where[step], full)
    with pytest.raises(TrainingError, match="No space left"):
        io.save_checkpoint({"step": 2}, path)
    assert torch.load(path, weights_only=True) == {"step": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]


def test_a_checkpoint_is_replaced_and_never_written_in_place(io, tmp_path: Path):
    """best.ckpt and previous.ckpt are hard links to what was once last.ckpt."""
    last, best = tmp_path / "last.ckpt", tmp_path / "best.ckpt"
    io.save_checkpoint({"step": 1}, last)
    best.hardlink_to(last)
    io.save_checkpoint({"step": 2}, last)
    assert torch.load(best, weights_only=True) == {"step": 1}
    assert torch.load(last, weights_only=True) == {"step": 2}


def test_each_checkpoint_is_its_own_also_where_there_are_no_hard_links(run_cli, tiny, tmp_path: Path, monkeypatch):
    def refused(*_):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(Path, "hardlink_to", refused)
    words = ["trainer.max_steps=6", "trainer.val_check_interval=2", "hydra.run.dir=run"]
    outcome = run_cli("train", *tiny, *words)
    assert outcome.code == 0, outcome.err
    folder = tmp_path / "run" / "checkpoints"
    assert {p.name for p in folder.iterdir()} == {"last.ckpt", "previous.ckpt", "best.ckpt"}
    steps = {
        name: torch.load(folder / f"{name}.ckpt", weights_only=True)["global_step"] for name in ("last", "previous")
    }
    assert steps == {"last": 6, "previous": 4}
