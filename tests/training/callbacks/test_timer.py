"""The clock of training: what counts as training time, and a run that time ends."""

import types
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chargpt.errors import UserError
from chargpt.training.callbacks import timer
from chargpt.training.callbacks.timer import TrainingTimer
from chargpt.utils.duration import parse_duration
from tests.training import run_artifacts
from tests.training.fault_injection import Clock


@pytest.mark.parametrize(
    ("given", "seconds"),
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
def test_times_are_understood(given, seconds):
    assert parse_duration(given) == seconds


@given(st.integers(0, 99), st.integers(0, 23), st.integers(0, 59), st.integers(1, 59))
def test_days_hours_minutes_and_seconds_add_up(days, hours, minutes, seconds):
    text = f"{days:02}:{hours:02}:{minutes:02}:{seconds:02}"
    by_name = {"days": days, "hours": hours, "minutes": minutes, "seconds": seconds}
    assert parse_duration(text) == parse_duration(by_name) == ((days * 24 + hours) * 60 + minutes) * 60 + seconds


@pytest.mark.parametrize(
    "bad", ["", "soon", "1:2:3:4:5", "00:00:", "nan", "inf", "-5", "0", 0, -1.0, {"fortnights": 2}, {"minutes": 0}]
)
def test_what_is_no_time_is_a_mistake_that_shows_it(bad):
    with pytest.raises(UserError, match=r"trainer\.max_time="):
        parse_duration(bad)


@pytest.fixture
def by_hand(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The training clock moves only as `Durations` says: a pass takes 1/32 s, a validation step 100 s."""
    monkeypatch.setattr(Clock, "now", 1000.0)
    monkeypatch.setattr(timer, "time", types.SimpleNamespace(perf_counter=Clock.perf_counter))
    callback = "+callbacks.durations"
    return [
        f"{callback}._target_=tests.training.fault_injection.Durations",
        f"{callback}.batch={1 / 32}",
        f"{callback}.validation=100.0",
        "callbacks.samples.max_new_tokens=0",
        "hydra.run.dir=run",
    ]


def test_training_time_is_that_of_the_steps_alone_summed_over_resumed_parts(run_cli, tiny, by_hand, tmp_path: Path):
    assert run_cli("train", *tiny, *by_hand).code == 0
    metrics = run_artifacts.metrics(tmp_path / "run")
    assert metrics["train_seconds"] == 20 / 32, "and not of the validations"
    assert metrics["tokens_per_second"] == 4 * 16 * 32
    outcome = run_cli("train", "resume=run", "trainer.max_steps=30", *by_hand[:-1])
    assert outcome.code == 0, outcome.err
    metrics = run_artifacts.metrics(tmp_path / "run")
    assert (metrics["steps"], metrics["train_seconds"]) == (30, 30 / 32)
    assert metrics["tokens_per_second"] == 4 * 16 * 32
    speeds = {float(row["tokens_per_second"]) for row in run_artifacts.history(tmp_path / "run")}
    assert speeds == {4 * 16 * 32}


def test_a_run_that_time_ends_ends_there_with_a_validation_at_the_final_learning_rate(
    run_cli, tiny, by_hand, tmp_path: Path
):
    words = ["schedule=warmup_cosine", "schedule.warmup_steps=0", "trainer.max_steps=-1", "trainer.max_time=2"]
    outcome = run_cli("train", *tiny, *words, *by_hand)
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


def test_a_run_with_two_ends_comes_to_the_nearer_one(run_cli, tiny, by_hand, tmp_path: Path):
    outcome = run_cli("train", *tiny, *by_hand, "trainer.max_steps=1000", "trainer.max_time=0.5")
    assert outcome.code == 0, outcome.err
    assert run_artifacts.metrics(tmp_path / "run")["steps"] == 16


def test_time_does_not_end_a_run_between_two_passes_of_one_step(run_cli, tiny, by_hand, tmp_path: Path):
    time = 7 / 32  # passes: three steps of two, and a half
    words = ["trainer.accumulate_grad_batches=2", "trainer.max_steps=-1", f"trainer.max_time={time}"]
    outcome = run_cli("train", *tiny, *by_hand, *words)
    assert outcome.code == 0, outcome.err
    metrics, rows = run_artifacts.metrics(tmp_path / "run"), run_artifacts.history(tmp_path / "run")
    assert metrics["steps"] * 2 / 32 == metrics["train_seconds"]
    assert rows[-1]["train_loss"]


def test_a_run_that_time_ended_goes_on_with_more_time_and_not_without(run_cli, tiny, by_hand, tmp_path: Path):
    words = ["schedule=warmup_cosine", "schedule.warmup_steps=0", "trainer.max_steps=-1", "trainer.max_time=1"]
    assert run_cli("train", *tiny, *words, *by_hand).code == 0
    run = tmp_path / "run"
    before = (run / "history.csv").read_text()
    refused = run_cli("train", "resume=run", *by_hand[:-1])
    assert refused.code == 2
    assert "max_time" in refused.err
    assert (run / "history.csv").read_text() == before
    outcome = run_cli("train", "resume=run", "trainer.max_time=2", "trainer.log_every_n_steps=1", *by_hand[:-1])
    assert outcome.code == 0, outcome.err
    assert run_artifacts.metrics(run)["train_seconds"] == 2.0
    first = next(row for row in run_artifacts.history(run) if row["step"] == "33")
    assert float(first["lr"]) == pytest.approx(5.5e-4, rel=0.02), "half of the new time is used"


def test_more_time_means_that_a_smaller_share_of_it_is_used():
    before = TrainingTimer(10.0)
    before._spent["train"] = 10.0
    before._used = 1.0
    now = TrainingTimer(40.0)
    now.load_state_dict(before.state_dict())
    assert now.time_used() == 0.25


def test_real_time_ends_a_run_that_needs_no_more_of_it_to_write_its_end(run_cli, tiny, tmp_path: Path):
    outcome = run_cli("train", *tiny, "hydra.run.dir=run", "trainer.max_steps=-1", "trainer.max_time=1")
    assert outcome.code == 0, outcome.err
    metrics = run_artifacts.metrics(tmp_path / "run")
    assert 1.0 <= metrics["train_seconds"] <= metrics["wall_seconds"]
    assert run_artifacts.status(tmp_path / "run")["state"] == "finished"
    (tmp_path / "run" / "metrics.json").unlink()  # as if it was killed after its last checkpoint
    outcome = run_cli("train", "resume=run")
    assert outcome.code == 0, outcome.err
    assert run_artifacts.status(tmp_path / "run")["state"] == "finished"
