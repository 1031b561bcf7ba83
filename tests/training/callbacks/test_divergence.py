"""Non-finite losses: the run stops at that step, or rolls back to its last good checkpoint."""

from pathlib import Path

import pytest
import torch

from chargpt.training.callbacks.divergence import NonFiniteLossDetector, first_non_finite_step
from tests.training import run_artifacts

QUIET = "callbacks.samples.max_new_tokens=0"
STEADY = ["optimizer=sgd", "optimizer.lr=0.01", "schedule=constant", "trainer.gradient_clip_val=null", QUIET]
STEADY += ["trainer.log_every_n_steps=20", "trainer.val_check_interval=3", "hydra.run.dir=run"]
COLUMNS = ("step", "train_loss", "val_loss", "lr", "grad_norm")


def fault(step: int, above: float = 0.0) -> list[str]:
    """Overrides that make this step diverge if the learning rate is above a limit."""
    overrides = [f"+callbacks.fault.step={step}", f"+callbacks.fault.above={above}"]
    return ["+callbacks.fault._target_=tests.training.fault_injection.Fault", *overrides]


def rollbacks(caplog) -> list[str]:
    return [line for line in caplog.messages if "Rolling back" in line]


def test_a_run_stops_at_the_step_of_the_first_non_finite_loss(run_cli, tiny, tmp_path: Path):
    """Step 7 makes the weights non-finite, so the first non-finite loss is that of step 8, between two log points."""
    outcome = run_cli("train", *tiny, *STEADY, *fault(7))
    assert outcome.code == 1
    line = outcome.err.splitlines()[-1]
    assert line.startswith("train.py: the training loss is nan at step 8 (learning rate 0.01, gradient norm ")
    assert run_artifacts.status(tmp_path / "run")["step"] == 8
    assert [row["step"] for row in run_artifacts.history(tmp_path / "run")] == ["1", "3", "6", "8"]
    assert run_artifacts.checkpoint(tmp_path / "run")["global_step"] == 6


def test_a_signal_does_not_save_non_finite_weights(run_cli, tiny, tmp_path: Path):
    """The signal arrives right after the step that makes the weights non-finite; the loss of this step is finite."""
    sigterm = ["+callbacks.signal._target_=tests.training.fault_injection.SignalAt", "+callbacks.signal.name=SIGTERM"]
    outcome = run_cli("train", *tiny, *STEADY, *fault(8), *sigterm, "+callbacks.signal.batch=8")
    assert outcome.code == 1
    assert "the weights are not finite after step 8" in outcome.err
    assert run_artifacts.checkpoint(tmp_path / "run")["global_step"] == 6


@pytest.mark.parametrize(("losses", "passes", "step"), [([1, 2, None], 1, 9), ([1, None, None], 1, 8)])
def test_the_first_non_finite_step_is_found(losses, passes, step):
    values = torch.tensor([float("nan") if loss is None else loss for loss in losses])
    assert first_non_finite_step(values, 9, passes) == step


def test_any_micro_batch_of_a_step_can_be_the_first_non_finite_one():
    values = torch.tensor([1, 1, 1, float("inf"), 1, 1])
    assert [first_non_finite_step(values, 9, passes) for passes in (1, 2, 3)] == [7, 8, 9]


def test_a_rollback_restarts_from_the_last_good_checkpoint_with_half_the_learning_rate(run_cli, tiny, tmp_path, caplog):
    outcome = run_cli("train", *tiny, *STEADY, *fault(8, above=0.006), "on_divergence=rollback")
    assert outcome.code == 0, outcome.err
    assert len(rollbacks(caplog)) == 1
    assert "(1 of 3)" in rollbacks(caplog)[0]
    rates = {int(row["step"]): float(row["lr"]) for row in run_artifacts.history(tmp_path / "run") if row["lr"]}
    assert rates == {1: 0.01, 20: 0.005}
    metrics = run_artifacts.metrics(tmp_path / "run")
    assert (metrics["rollbacks"], metrics["steps"]) == (1, 20)
    steps = [int(row["step"]) for row in run_artifacts.history(tmp_path / "run")]
    assert steps == [1, 3, 6, 9, 12, 15, 18, 20]


@pytest.mark.slow
def test_resuming_after_a_rollback_equals_an_uninterrupted_run(run_cli, tiny, tmp_path: Path, caplog):
    overrides = [*tiny, *STEADY, "on_divergence=rollback", *fault(8, above=0.006)]
    assert run_cli("train", *overrides, "hydra.run.dir=uninterrupted").code == 0
    sigterm = ["+callbacks.signal._target_=tests.training.fault_injection.SignalAt", "+callbacks.signal.name=SIGTERM"]
    assert run_cli("train", *overrides, *sigterm, "+callbacks.signal.batch=13").code == 3
    caplog.clear()
    outcome = run_cli("train", "resume=run", QUIET, *fault(8, above=0.006))
    assert outcome.code == 0, outcome.err
    assert not rollbacks(caplog)
    assert run_artifacts.metrics(tmp_path / "run")["rollbacks"] == 1
    run, expected = tmp_path / "run", tmp_path / "uninterrupted"
    assert not run_artifacts.differences(run_artifacts.training_state(run), run_artifacts.training_state(expected))
    assert run_artifacts.history(run, *COLUMNS) == run_artifacts.history(expected, *COLUMNS)


@pytest.mark.slow
@pytest.mark.parametrize("step", [2, 8], ids=["before-checkpoint", "after-checkpoint"])
def test_a_run_fails_after_three_rollbacks(run_cli, tiny, tmp_path: Path, caplog, step):
    outcome = run_cli("train", *tiny, *STEADY, *fault(step), "on_divergence=rollback")
    assert outcome.code == 1
    assert [f"({n} of 3)" in line for n, line in enumerate(rollbacks(caplog), 1)] == [True] * 3
    assert run_artifacts.status(tmp_path / "run")["state"] == "diverged"
    assert "learning rate 0.00125" in outcome.err.splitlines()[-1]
    assert not (tmp_path / "run" / "metrics.json").exists()


def test_an_unknown_divergence_action_is_a_user_error(run_cli, tiny):
    outcome = run_cli("train", *tiny, "on_divergence=ignore")
    assert outcome.code == 2
    assert "stop, rollback" in outcome.err


@pytest.mark.slow
def test_two_processes_roll_back_together(run_cli, tiny, tmp_path: Path):
    overrides = [*STEADY, *fault(8, above=0.006), "on_divergence=rollback", "trainer.devices=2"]
    outcome = run_cli("train", *tiny, *overrides)
    assert outcome.code == 0, outcome.err
    assert run_artifacts.metrics(tmp_path / "run")["rollbacks"] == 1


NAN = torch.tensor(float("nan"))
GOOD = torch.tensor(1.0)


@pytest.mark.parametrize(("device", "delay"), [("cpu", 0), ("mps", 1)])
def test_a_non_finite_loss_is_detected_immediately_on_a_cpu_and_one_step_later_elsewhere(device, delay):
    detector = NonFiniteLossDetector(torch.device(device), passes=1)
    detected = [detector.is_non_finite([loss]) for loss in (GOOD, GOOD, NAN, GOOD, GOOD, NAN, GOOD)]
    assert [step for step, is_non_finite in enumerate(detected) if is_non_finite] == [2 + delay, 5 + delay]


class FakeStream:
    """Simulates a GPU stream: a copy to the host is done when the event after it is synchronized."""

    def __init__(self, monkeypatch):
        self.queue, copy = [], torch.Tensor.copy_
        stream = self

        class Event:
            def __init__(self, blocking):
                assert blocking, "a spinning wait would keep a core busy"

            def record(self):
                self.position = len(stream.queue)

            def synchronize(self):
                for operation in stream.queue[: self.position]:
                    operation()

        def copy_later(target, source, non_blocking=False):
            if not non_blocking:
                return copy(target, source)
            copy(target, torch.full_like(target, float("inf")))
            self.queue.append(lambda: copy(target, source))

        zeros = torch.zeros

        def zeros_without_pinning(*size, pin_memory):
            return zeros(*size)

        monkeypatch.setattr(torch, "zeros", zeros_without_pinning)
        monkeypatch.setattr(torch.Tensor, "copy_", copy_later)
        monkeypatch.setattr(torch.cuda, "Event", Event)


def test_on_a_gpu_a_loss_is_read_after_the_event_of_its_copy(monkeypatch):
    FakeStream(monkeypatch)
    detector = NonFiniteLossDetector(torch.device("cuda"), passes=1)
    losses = (GOOD, GOOD, NAN, GOOD, None, GOOD, NAN, GOOD)  # None: the losses were read to log a point
    detected = [detector.is_non_finite([loss] if loss is not None else []) for loss in losses]
    assert [step for step, is_non_finite in enumerate(detected) if is_non_finite] == [3, 7]


@pytest.mark.parametrize("bad", [0, 1, 2])
def test_every_micro_batch_is_checked_and_a_step_without_losses_is_accepted(bad):
    detector = NonFiniteLossDetector(torch.device("cpu"), passes=3)
    assert not detector.is_non_finite([])
    assert not detector.is_non_finite([GOOD] * 3)
    assert not detector.is_non_finite([])
    assert detector.is_non_finite([NAN if i == bad else GOOD for i in range(3)])


@pytest.mark.parametrize("budget", [[], ["trainer.max_time=100"]], ids=["steps", "time"])
def test_no_value_is_read_from_the_device_between_two_logged_points(run_cli, tiny, tmp_path: Path, budget):
    """On a GPU each such read would synchronize with the device."""
    overrides = [
        "trainer.max_steps=40",
        "trainer.log_every_n_steps=20",
        "trainer.val_check_interval=20",
        QUIET,
        *budget,
    ]
    file = f"+callbacks.reads.file={tmp_path / 'reads.txt'}"
    count = ["+callbacks.reads._target_=tests.training.fault_injection.CountReads", file]
    outcome = run_cli("train", *tiny, *overrides, *count, "trainer.ema_decay=0.9")
    assert outcome.code == 0, outcome.err
    reads = [int(line) for line in (tmp_path / "reads.txt").read_text().split()]
    assert len(reads) == 40
    assert reads[19] > 0, "reads are counted"
    assert not any(reads[1:19]) and not any(reads[20:39])
