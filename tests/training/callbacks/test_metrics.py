"""The training curves: which steps have a point, its values, and runs that diverge."""

import math
from pathlib import Path

import pytest
import torch

import chargpt
from tests.training import run_artifacts

DIVERGE = ["optimizer=sgd", "optimizer.lr=1e12", "schedule=constant", "trainer.gradient_clip_val=null"]


def test_points_are_logged_at_the_first_step_each_interval_and_the_end_as_means_since_the_last_point(
    run_cli, tiny, tmp_path: Path
):
    for every in (1, 4):
        overrides = [
            "trainer.max_steps=9",
            "trainer.val_check_interval=9",
            f"trainer.log_every_n_steps={every}",
            f"hydra.run.dir=every_{every}",
        ]
        assert run_cli("train", *tiny, *overrides).code == 0
    steps = [row["step"] for row in run_artifacts.history(tmp_path / "every_4")]
    assert steps == ["1", "4", "8", "9"]
    losses = [float(row["train_loss"]) for row in run_artifacts.history(tmp_path / "every_1")]
    coarse = [float(row["train_loss"]) for row in run_artifacts.history(tmp_path / "every_4")]
    groups = [losses[0:1], losses[1:4], losses[4:8], losses[8:9]]
    assert coarse == pytest.approx([sum(group) / len(group) for group in groups], rel=1e-6)


def test_a_diverged_run_fails_with_a_one_line_message(run_cli, tiny, tmp_path: Path):
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


def is_finite(checkpoint: dict) -> bool:
    return all(torch.isfinite(tensor).all() for tensor in checkpoint["state_dict"].values())


@pytest.mark.parametrize("every", [1, 2, 6])
def test_a_diverged_run_keeps_its_last_good_checkpoint(run_cli, tiny, tmp_path: Path, every):
    """After three good steps, the learning rate makes the weights overflow."""
    overrides = [f"trainer.val_check_interval={every}", "trainer.log_every_n_steps=20", "hydra.run.dir=run"]
    steady = ["optimizer=sgd", "optimizer.lr=0.01", "schedule=constant", "trainer.gradient_clip_val=null"]
    outcome = run_cli(
        "train",
        *tiny,
        *steady,
        *overrides,
        "+callbacks.fault._target_=tests.training.fault_injection.Fault",
        "+callbacks.fault.step=4",
    )
    assert outcome.code == 1
    run = tmp_path / "run"
    assert run_artifacts.status(run)["state"] == "diverged"
    names = {p.stem for p in (run / "checkpoints").glob("*.ckpt")}
    if every <= 3:
        assert is_finite(run_artifacts.checkpoint(run, "last"))
        assert is_finite(run_artifacts.checkpoint(run, "best"))
        assert run_artifacts.checkpoint(run, "last")["global_step"] == 3 // every * every
        assert math.isfinite(float(chargpt.load(run).model(torch.tensor([[0, 1, 2]])).sum()))
    assert all(is_finite(run_artifacts.checkpoint(run, name)) for name in names)


def test_mfu_is_reported_if_the_devices_peak_is_known(run_cli, tiny, tmp_path: Path, monkeypatch):
    monkeypatch.setattr("chargpt.training.callbacks.metrics.peak_flops", lambda trainer: 1e12)
    outcome = run_cli("train", *tiny, "hydra.run.dir=run")
    assert "of peak" in outcome.out
    scalars = run_artifacts.scalars(tmp_path / "run")
    model = chargpt.load(tmp_path / "run").model
    for (step, mfu), (_, speed) in zip(scalars["train/mfu"], scalars["train/tokens_per_second"], strict=True):
        assert mfu == pytest.approx(speed * model.flops_per_token() / 1e12, rel=1e-4), step
