"""The curves: which steps have a point, what it says, and what happens when the loss is no longer a number."""

import math
from pathlib import Path

import pytest
import torch

import chargpt
from tests.training import run_artifacts

DIVERGE = ["optimizer=sgd", "optimizer.lr=1e12", "schedule=constant", "trainer.gradient_clip_val=null"]


def test_points_stand_at_the_first_step_each_interval_and_the_end_and_are_means_since_the_one_before(
    run_cli, tiny, tmp_path: Path
):
    for every in (1, 4):
        words = [
            "trainer.max_steps=9",
            "trainer.val_check_interval=9",
            f"trainer.log_every_n_steps={every}",
            f"hydra.run.dir=every_{every}",
        ]
        assert run_cli("train", *tiny, *words).code == 0
    steps = [row["step"] for row in run_artifacts.history(tmp_path / "every_4")]
    assert steps == ["1", "4", "8", "9"]
    each = [float(row["train_loss"]) for row in run_artifacts.history(tmp_path / "every_1")]
    coarse = [float(row["train_loss"]) for row in run_artifacts.history(tmp_path / "every_4")]
    groups = [each[0:1], each[1:4], each[4:8], each[8:9]]
    assert coarse == pytest.approx([sum(group) / len(group) for group in groups], rel=1e-6)


def test_a_run_that_diverges_says_so_in_one_line_and_fails(run_cli, tiny, tmp_path: Path):
    outcome = run_cli("train", *tiny, *DIVERGE, "hydra.run.dir=run")
    run = tmp_path / "run"
    assert outcome.code == 1
    last = outcome.err.splitlines()[-1]
    assert last.startswith("train.py: ")
    assert "optimizer.lr" in last
    assert "Traceback" not in outcome.err
    status = run_artifacts.status(run)
    assert status["state"] == "diverged"
    assert f"step {status['step']}" in status["reason"]
    rows = run_artifacts.history(run)
    assert rows[-1]["step"] == str(status["step"])
    assert not math.isfinite(float(rows[-1]["train_loss"]))
    assert not (run / "metrics.json").exists()


def good(checkpoint: dict) -> bool:
    return all(torch.isfinite(tensor).all() for tensor in checkpoint["state_dict"].values())


@pytest.mark.parametrize("every", [1, 2, 6])
def test_a_run_that_diverges_keeps_its_last_good_checkpoint(run_cli, tiny, tmp_path: Path, every):
    """However often it validates: three good steps, then a learning rate that no model survives."""
    words = [f"trainer.val_check_interval={every}", "trainer.log_every_n_steps=20", "hydra.run.dir=run"]
    steady = ["optimizer=sgd", "optimizer.lr=0.01", "schedule=constant", "trainer.gradient_clip_val=null"]
    outcome = run_cli(
        "train",
        *tiny,
        *steady,
        *words,
        "+callbacks.fault._target_=tests.training.fault_injection.Fault",
        "+callbacks.fault.step=4",
    )
    assert outcome.code == 1
    run = tmp_path / "run"
    assert run_artifacts.status(run)["state"] == "diverged"
    kept = {p.stem for p in (run / "checkpoints").glob("*.ckpt")}
    if every <= 3:
        assert good(run_artifacts.checkpoint(run, "last"))
        assert good(run_artifacts.checkpoint(run, "best"))
        assert run_artifacts.checkpoint(run, "last")["global_step"] == 3 // every * every
        assert math.isfinite(float(chargpt.load(run).model(torch.tensor([[0, 1, 2]])).sum()))
    assert all(good(run_artifacts.checkpoint(run, name)) for name in kept)


def test_the_share_of_the_devices_peak_is_told_where_the_peak_is_known(run_cli, tiny, tmp_path: Path, monkeypatch):
    monkeypatch.setattr("chargpt.training.callbacks.metrics.peak_flops", lambda trainer: 1e12)
    outcome = run_cli("train", *tiny, "hydra.run.dir=run")
    assert "of the device's peak" in outcome.out
    scalars = run_artifacts.scalars(tmp_path / "run")
    model = chargpt.load(tmp_path / "run").model
    for (step, share), (_, speed) in zip(scalars["mfu"], scalars["tokens_per_second"], strict=True):
        assert share == pytest.approx(speed * model.flops_per_token() / 1e12, rel=1e-4), step
