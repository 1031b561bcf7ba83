"""The best checkpoint of a run with partial validations is measured on the complete validation split."""

import logging
import math
import os
import signal

import pytest

from chargpt.training import complete_validation
from tests.training import run_artifacts

PART = ["data.max_validation_tokens=64", "data.validation_tokens=64", "hydra.run.dir=run"]

SLOW_COPIES = ["+callbacks.slow._target_=tests.training.fault_injection.SlowCopies", "+callbacks.slow.seconds=0.5"]


@pytest.fixture
def measured(run_cli):
    """The loss of the best checkpoint of `run` on the complete validation split, by evaluate.py."""

    def measure() -> float:
        outcome = run_cli("evaluate", "run=run", "split=val")
        assert outcome.code == 0, outcome.err
        return float(outcome.out.partition("loss  ")[2].split()[0])

    return measure


@pytest.mark.parametrize("devices", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_the_metrics_are_those_of_the_complete_split(run_cli, tiny, measured, tmp_path, devices, caplog):
    with caplog.at_level(logging.INFO):
        outcome = run_cli("train", *tiny, *PART, f"trainer.devices={devices}", *(SLOW_COPIES if devices > 1 else []))
    assert outcome.code == 0, outcome.err
    metrics = run_artifacts.metrics(tmp_path / "run")
    if devices == 1:  # otherwise another process logs it
        assert f"on 64 of {metrics['validation_tokens']:,} tokens" in caplog.text
    assert metrics["score"] == metrics["val_loss"] == pytest.approx(measured(), abs=1e-4)
    assert metrics["val_bpc"] == pytest.approx(metrics["val_loss"] / math.log(2))
    history = run_artifacts.history(tmp_path / "run", "val_loss")
    assert str(metrics["final_val_loss"]) in [row["val_loss"] for row in history], "of a part"
    assert "partial_validation" not in metrics


def test_a_limit_of_the_trainer_is_obeyed(run_cli, tiny, tmp_path):
    assert run_cli("train", *tiny, *PART, "trainer.limit_val_batches=0.5", "data.validation_tokens=16").code == 0
    metrics = run_artifacts.metrics(tmp_path / "run")
    assert (metrics["partial_validation"], metrics["validation_tokens"]) == (True, 32)


def test_validations_of_the_complete_split_are_not_repeated(run_cli, tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(complete_validation, "measure_best", None)
    assert run_cli("train", *tiny, "hydra.run.dir=run").code == 0
    metrics = run_artifacts.metrics(tmp_path / "run")
    assert metrics["val_loss"] == min(
        float(row["val_loss"]) for row in run_artifacts.history(tmp_path / "run", "val_loss") if row["val_loss"]
    )


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_a_signal_ends_it_and_the_resumed_run_continues_with_it(run_cli, tiny, tmp_path, monkeypatch, number):
    real = complete_validation.cross_entropy
    losses = []

    def signal_in_the_third_batch(*args, **settings):
        losses.append(real(*args, **settings))
        if len(losses) == 3:
            os.kill(os.getpid(), number)
        return losses[-1]

    monkeypatch.setattr(complete_validation, "cross_entropy", signal_in_the_third_batch)
    outcome = run_cli("train", *tiny, *PART)
    assert outcome.code == 3, outcome.err
    assert "in the last validation. Resume with:" in outcome.err
    assert len(losses) == 3
    status = run_artifacts.status(tmp_path / "run")
    assert (status["state"], status["step"]) == ("interrupted", 20)
    outcome = run_cli("train", "resume=run")
    assert outcome.code == 0, outcome.err
    assert run_cli("train", *tiny, *PART[:-1], "hydra.run.dir=other").code == 0
    equal = ("val_loss", "score", "best_step", "steps", "validation_tokens", "final_val_loss")
    one, other = (run_artifacts.metrics(tmp_path / name) for name in ("run", "other"))
    assert {key: one[key] for key in equal} == {key: other[key] for key in equal}
    assert run_artifacts.scalars(tmp_path / "run").keys() == run_artifacts.scalars(tmp_path / "other").keys()
