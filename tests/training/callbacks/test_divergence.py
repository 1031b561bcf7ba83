"""A run whose loss is no longer a number: stopped at its step with what was good, or taken back to it."""

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
    """Breaks the weights in this step, where the learning rate is above a limit."""
    words = [f"+callbacks.fault.step={step}", f"+callbacks.fault.above={above}"]
    return ["+callbacks.fault._target_=tests.training.fault_injection.Fault", *words]


def told(caplog) -> list[str]:
    return [line for line in caplog.messages if "Going back" in line]


def test_the_run_stops_at_the_step_of_the_first_loss_that_is_no_number(run_cli, tiny, tmp_path: Path):
    """Weights broken in step 7: the loss of step 8, between two points of the curves, is the first to show it."""
    outcome = run_cli("train", *tiny, *STEADY, *fault(7))
    assert outcome.code == 1
    line = outcome.err.splitlines()[-1]
    assert line.startswith("train.py: the training loss is nan at step 8 (learning rate 0.01, gradient norm ")
    assert run_artifacts.status(tmp_path / "run")["step"] == 8
    assert [row["step"] for row in run_artifacts.history(tmp_path / "run")] == ["1", "3", "6", "8"]
    assert run_artifacts.checkpoint(tmp_path / "run")["global_step"] == 6


def test_weights_that_are_no_numbers_are_not_saved_for_a_signal_either(run_cli, tiny, tmp_path: Path):
    """It comes right after the step that broke them, whose own loss was good."""
    cut = ["+callbacks.cut._target_=tests.training.fault_injection.SignalAt", "+callbacks.cut.name=SIGTERM"]
    outcome = run_cli("train", *tiny, *STEADY, *fault(8), *cut, "+callbacks.cut.batch=8")
    assert outcome.code == 1
    assert "the weights are no longer numbers after step 8" in outcome.err
    assert run_artifacts.checkpoint(tmp_path / "run")["global_step"] == 6


@pytest.mark.parametrize(("losses", "passes", "step"), [([1, 2, None], 1, 9), ([1, None, None], 1, 8)])
def test_the_first_lost_step_is_told(losses, passes, step):
    values = torch.tensor([float("nan") if loss is None else loss for loss in losses])
    assert first_non_finite_step(values, 9, passes) == step


def test_of_a_step_in_several_passes_any_can_be_the_first():
    values = torch.tensor([1, 1, 1, float("inf"), 1, 1])
    assert [first_non_finite_step(values, 9, passes) for passes in (1, 2, 3)] == [7, 8, 9]


def test_a_run_goes_back_to_its_last_good_checkpoint_with_half_the_learning_rate(run_cli, tiny, tmp_path, caplog):
    outcome = run_cli("train", *tiny, *STEADY, *fault(8, above=0.006), "on_divergence=rollback")
    assert outcome.code == 0, outcome.err
    assert len(told(caplog)) == 1
    assert "(1 of 3)" in told(caplog)[0]
    rates = {int(row["step"]): float(row["lr"]) for row in run_artifacts.history(tmp_path / "run") if row["lr"]}
    assert rates == {1: 0.01, 20: 0.005}
    metrics = run_artifacts.metrics(tmp_path / "run")
    assert (metrics["rollbacks"], metrics["steps"]) == (1, 20)
    assert [row["step"] for row in run_artifacts.history(tmp_path / "run")] == [
        "1",
        "3",
        "6",
        "9",
        "12",
        "15",
        "18",
        "20",
    ]


def test_a_run_that_went_back_and_is_cut_off_is_the_run_that_is_not(run_cli, tiny, tmp_path: Path, caplog):
    words = [*tiny, *STEADY, "on_divergence=rollback", *fault(8, above=0.006)]
    assert run_cli("train", *words, "hydra.run.dir=whole").code == 0
    cut = ["+callbacks.cut._target_=tests.training.fault_injection.SignalAt", "+callbacks.cut.name=SIGTERM"]
    assert run_cli("train", *words, *cut, "+callbacks.cut.batch=13").code == 3
    caplog.clear()
    outcome = run_cli("train", "resume=run", QUIET, *fault(8, above=0.006))
    assert outcome.code == 0, outcome.err
    assert not told(caplog)
    assert run_artifacts.metrics(tmp_path / "run")["rollbacks"] == 1
    run, whole = tmp_path / "run", tmp_path / "whole"
    assert not run_artifacts.differences(run_artifacts.learned(run), run_artifacts.learned(whole))
    assert run_artifacts.history(run, *COLUMNS) == run_artifacts.history(whole, *COLUMNS)


@pytest.mark.parametrize("step", [2, 8], ids=["before the first checkpoint", "after it"])
def test_three_times_are_enough(run_cli, tiny, tmp_path: Path, caplog, step):
    outcome = run_cli("train", *tiny, *STEADY, *fault(step), "on_divergence=rollback")
    assert outcome.code == 1
    assert [f"({n} of 3)" in line for n, line in enumerate(told(caplog), 1)] == [True] * 3
    assert run_artifacts.status(tmp_path / "run")["state"] == "diverged"
    assert "learning rate 0.00125" in outcome.err.splitlines()[-1]
    assert not (tmp_path / "run" / "metrics.json").exists()


def test_another_way_is_a_mistake(run_cli, tiny, tmp_path: Path):
    outcome = run_cli("train", *tiny, "on_divergence=pray")
    assert outcome.code == 2
    assert "stop, rollback" in outcome.err


@pytest.mark.slow
def test_two_processes_go_back_together(run_cli, tiny, tmp_path: Path):
    words = [*STEADY, *fault(8, above=0.006), "on_divergence=rollback", "trainer.devices=2"]
    outcome = run_cli("train", *tiny, *words)
    assert outcome.code == 0, outcome.err
    assert run_artifacts.metrics(tmp_path / "run")["rollbacks"] == 1


NAN = torch.tensor(float("nan"))
GOOD = torch.tensor(1.0)


@pytest.mark.parametrize(("device", "late"), [("cpu", 0), ("mps", 1)])
def test_a_lost_loss_is_seen_at_once_on_a_cpu_and_a_step_later_elsewhere(device, late):
    watch = NonFiniteLossDetector(torch.device(device), passes=1)
    seen = [watch.is_non_finite([loss]) for loss in (GOOD, GOOD, NAN, GOOD, GOOD, NAN, GOOD)]
    lost = [step for step, is_non_finite in enumerate(seen) if is_non_finite]
    assert lost == [2 + late, 5 + late]


class Queue:
    """Stands in for a GPU's stream: a copy to the host is done when the event behind it is waited for."""

    def __init__(self, monkeypatch):
        self.waiting, copy = [], torch.Tensor.copy_
        queue = self

        class Event:
            def __init__(self, blocking):
                assert blocking, "or the wait keeps a core busy"

            def record(self):
                self.before = len(queue.waiting)

            def synchronize(self):
                for work in queue.waiting[: self.before]:
                    work()

        def copy_later(target, source, non_blocking=False):
            if not non_blocking:
                return copy(target, source)
            copy(target, torch.full_like(target, float("inf")))
            self.waiting.append(lambda: copy(target, source))

        zeros = torch.zeros

        def not_pinned(*size, pin_memory):
            return zeros(*size)

        monkeypatch.setattr(torch, "zeros", not_pinned)
        monkeypatch.setattr(torch.Tensor, "copy_", copy_later)
        monkeypatch.setattr(torch.cuda, "Event", Event)


def test_on_a_gpu_a_loss_is_read_behind_the_event_of_its_copy(monkeypatch):
    Queue(monkeypatch)
    watch = NonFiniteLossDetector(torch.device("cuda"), passes=1)
    losses = (GOOD, GOOD, NAN, GOOD, None, GOOD, NAN, GOOD)  # at one of them a point of the curves was logged
    seen = [watch.is_non_finite([loss] if loss is not None else []) for loss in losses]
    assert [step for step, is_non_finite in enumerate(seen) if is_non_finite] == [3, 7]


@pytest.mark.parametrize("bad", [0, 1, 2])
def test_each_pass_of_a_step_counts_and_a_step_without_new_losses_is_no_loss(bad):
    watch = NonFiniteLossDetector(torch.device("cpu"), passes=3)
    assert not watch.is_non_finite([])
    assert not watch.is_non_finite([GOOD] * 3)
    assert not watch.is_non_finite([])
    assert watch.is_non_finite([NAN if i == bad else GOOD for i in range(3)])


@pytest.mark.parametrize("budget", [[], ["trainer.max_time=100"]], ids=["steps", "time"])
def test_between_two_points_of_the_curves_no_value_is_read_from_the_device(run_cli, tiny, tmp_path: Path, budget):
    """On a GPU each such read would wait for all that the device has been given."""
    words = [
        "trainer.max_steps=40",
        "trainer.log_every_n_steps=20",
        "trainer.val_check_interval=20",
        QUIET,
        *budget,
    ]
    reads = f"+callbacks.reads.file={tmp_path / 'reads.txt'}"
    count = ["+callbacks.reads._target_=tests.training.fault_injection.CountReads", reads]
    outcome = run_cli("train", *tiny, *words, *count, "trainer.ema_decay=0.9")
    assert outcome.code == 0, outcome.err
    at_step = [int(line) for line in (tmp_path / "reads.txt").read_text().split()]
    assert len(at_step) == 40
    assert at_step[19] > 0, "the count itself works"
    assert not any(at_step[1:19]) and not any(at_step[20:39])
