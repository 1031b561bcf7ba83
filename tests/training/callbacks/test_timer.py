"""The training timer: what counts as training time, and runs with a time limit."""

import types
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from chargpt.errors import UserError
from chargpt.training.callbacks import timer
from chargpt.training.callbacks.timer import TrainingTimer
from chargpt.utils.duration import parse_duration
from tests.training import run_artifacts
from tests.training.fault_injection import FakeClock


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("00:00:02:00", 120.0),
        ("01:02:03:04", 86400.0 + 2 * 3600 + 3 * 60 + 4),
        ("00:01:30:00.5", 5400.5),
        ("02:30", 150.0),
        ("90", 90.0),
        (90, 90.0),
        (0.5, 0.5),
        ({"minutes": 2}, 120.0),
        ({"hours": 1, "seconds": 1.5}, 3601.5),
        (None, None),
    ],
)
def test_durations_are_parsed(value, seconds):
    assert parse_duration(value) == seconds


def test_the_timer_waits_for_an_apple_gpu_before_and_after_training_steps(monkeypatch):
    waits = []
    monkeypatch.setattr(torch.mps, "synchronize", lambda: waits.append(None))
    timer, counts = TrainingTimer(None), []
    for activity in ("train", "train", "validation", "checkpoint", "train"):
        timer.start_activity(activity, torch.device("mps"))
        counts.append(len(waits))
    assert counts == [1, 1, 2, 2, 3]


@given(st.integers(0, 99), st.integers(0, 23), st.integers(0, 59), st.integers(1, 59))
def test_days_hours_minutes_and_seconds_add_up(days, hours, minutes, seconds):
    text = f"{days:02}:{hours:02}:{minutes:02}:{seconds:02}"
    by_name = {"days": days, "hours": hours, "minutes": minutes, "seconds": seconds}
    assert parse_duration(text) == parse_duration(by_name) == ((days * 24 + hours) * 60 + minutes) * 60 + seconds


@pytest.mark.parametrize(
    "bad", ["", "soon", "1:2:3:4:5", "00:00:", "nan", "inf", "-5", "0", 0, -1.0, {"fortnights": 2}, {"minutes": 0}]
)
def test_an_invalid_duration_is_a_user_error(bad):
    with pytest.raises(UserError, match=r"trainer\.max_time="):
        parse_duration(bad)


@pytest.fixture
def fake_clock(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Replaces the clock: a forward pass takes 1/32 s, a validation step 100 s. Returns the overrides for it."""
    monkeypatch.setattr(FakeClock, "now", 1000.0)
    monkeypatch.setattr(timer, "time", types.SimpleNamespace(perf_counter=FakeClock.perf_counter))
    callback = "+callbacks.durations"
    return [
        f"{callback}._target_=tests.training.fault_injection.Durations",
        f"{callback}.batch={1 / 32}",
        f"{callback}.validation=100.0",
        "callbacks.samples.max_new_tokens=0",
        "hydra.run.dir=run",
    ]


def test_training_time_counts_steps_only_and_continues_after_resuming(run_cli, tiny, fake_clock, tmp_path: Path):
    assert run_cli("train", *tiny, *fake_clock).code == 0
    metrics = run_artifacts.metrics(tmp_path / "run")
    assert metrics["train_seconds"] == 20 / 32, "without the validations"
    assert metrics["tokens_per_second"] == 4 * 16 * 32
    outcome = run_cli("train", "resume=run", "trainer.max_steps=30", *fake_clock[:-1])
    assert outcome.code == 0, outcome.err
    metrics = run_artifacts.metrics(tmp_path / "run")
    assert (metrics["steps"], metrics["train_seconds"]) == (30, 30 / 32)
    assert metrics["tokens_per_second"] == 4 * 16 * 32
    speeds = {float(row["tokens_per_second"]) for row in run_artifacts.history(tmp_path / "run")}
    assert speeds == {4 * 16 * 32}


def test_a_time_limit_ends_a_run_with_a_validation_at_the_final_learning_rate(
    run_cli, tiny, fake_clock, tmp_path: Path
):
    overrides = ["schedule=warmup_cosine", "schedule.warmup_steps=0", "trainer.max_steps=-1", "trainer.max_time=2"]
    outcome = run_cli("train", *tiny, *overrides, *fake_clock)
    assert outcome.code == 0, outcome.err
    run = tmp_path / "run"
    assert run_artifacts.status(run)["state"] == "finished"
    assert run_artifacts.metrics(run)["steps"] == 64
    assert run_artifacts.metrics(run)["train_seconds"] == 2.0
    rows = run_artifacts.history(run)
    assert float(rows[0]["lr"]) == pytest.approx(1e-3)
    assert rows[-1]["step"] == "64"
    assert float(rows[-1]["lr"]) == pytest.approx(1e-4, rel=0.05)
    assert rows[-1]["train_loss"]
    assert float(rows[-1]["val_loss"]) == run_artifacts.metrics(run)["final_val_loss"]


def test_the_earlier_of_max_steps_and_max_time_ends_a_run(run_cli, tiny, fake_clock, tmp_path: Path):
    outcome = run_cli("train", *tiny, *fake_clock, "trainer.max_steps=1000", "trainer.max_time=0.5")
    assert outcome.code == 0, outcome.err
    assert run_artifacts.metrics(tmp_path / "run")["steps"] == 16


def test_a_time_limit_never_ends_a_run_between_micro_batches(run_cli, tiny, fake_clock, tmp_path: Path):
    time = 7 / 32  # seven passes of 1/32 s: three steps of two passes, and half a step
    overrides = ["trainer.accumulate_grad_batches=2", "trainer.max_steps=-1", f"trainer.max_time={time}"]
    outcome = run_cli("train", *tiny, *fake_clock, *overrides)
    assert outcome.code == 0, outcome.err
    metrics, rows = run_artifacts.metrics(tmp_path / "run"), run_artifacts.history(tmp_path / "run")
    assert metrics["steps"] * 2 / 32 == metrics["train_seconds"]
    assert rows[-1]["train_loss"]


@pytest.mark.slow
def test_a_run_at_its_time_limit_is_resumed_only_with_a_larger_limit(run_cli, tiny, fake_clock, tmp_path: Path):
    overrides = ["schedule=warmup_cosine", "schedule.warmup_steps=0", "trainer.max_steps=-1", "trainer.max_time=1"]
    assert run_cli("train", *tiny, *overrides, *fake_clock).code == 0
    run = tmp_path / "run"
    before = (run / "history.csv").read_text()
    refused = run_cli("train", "resume=run", *fake_clock[:-1])
    assert refused.code == 2
    assert "max_time" in refused.err
    assert (run / "history.csv").read_text() == before
    outcome = run_cli("train", "resume=run", "trainer.max_time=2", "trainer.log_every_n_steps=1", *fake_clock[:-1])
    assert outcome.code == 0, outcome.err
    assert run_artifacts.metrics(run)["train_seconds"] == 2.0
    first = next(row for row in run_artifacts.history(run) if row["step"] == "33")
    assert float(first["lr"]) == pytest.approx(5.5e-4, rel=0.02), "half of the new time limit is used"


def test_a_larger_time_limit_reduces_the_fraction_used():
    saved = TrainingTimer(10.0)
    saved._spent["train"] = 10.0
    saved._used = 1.0
    resumed = TrainingTimer(40.0)
    resumed.load_state_dict(saved.state_dict())
    assert resumed.time_fraction() == 0.25


@pytest.mark.slow
def test_a_run_at_its_time_limit_is_resumed_if_only_its_metrics_are_missing(run_cli, tiny, tmp_path: Path):
    outcome = run_cli("train", *tiny, "hydra.run.dir=run", "trainer.max_steps=-1", "trainer.max_time=1")
    assert outcome.code == 0, outcome.err
    metrics = run_artifacts.metrics(tmp_path / "run")
    assert 1.0 <= metrics["train_seconds"] <= metrics["wall_seconds"]
    assert run_artifacts.status(tmp_path / "run")["state"] == "finished"
    (tmp_path / "run" / "metrics.json").unlink()  # as if the run had been killed after its last checkpoint
    outcome = run_cli("train", "resume=run")
    assert outcome.code == 0, outcome.err
    assert run_artifacts.status(tmp_path / "run")["state"] == "finished"
