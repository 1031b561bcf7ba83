"""A run that was cut off during a validation starts with this validation when it is resumed."""

import signal

import pytest

from chargpt.training.callbacks import interrupt
from tests.conftest import REPO, process
from tests.training import run_artifacts

RUN = ["trainer.max_steps=12", "trainer.val_check_interval=4", "trainer.log_every_n_steps=4", "hydra.run.dir=run"]
KILL = ["+callbacks.kill._target_=tests.training.fault_injection.KillInValidation"]


@pytest.mark.parametrize(
    ("step", "overrides"),
    [pytest.param(8, [], marks=pytest.mark.slow), pytest.param(12, ["trainer.ema_decay=0.9"], marks=pytest.mark.slow)],
)
def test_a_kill_during_a_validation_loses_no_step(run_cli, tiny, tmp_path, step, overrides):
    kill = [*overrides, *KILL, f"+callbacks.kill.step={step}"]
    assert process(tmp_path, "train", *tiny, *RUN, *kill, PYTHONPATH=str(REPO)).code == -signal.SIGKILL
    run = tmp_path / "run"
    saved = run_artifacts.checkpoint(run)
    assert (saved["global_step"], saved["chargpt"]["validation_due"]) == (step, True)
    assert run_cli("train", "resume=run").code == 0
    assert run_cli("train", *tiny, *RUN[:-1], *overrides, "hydra.run.dir=other").code == 0
    other = tmp_path / "other"
    assert not run_artifacts.differences(run_artifacts.training_state(run), run_artifacts.training_state(other))
    columns = ("step", "train_loss", "val_loss", "lr", "grad_norm")
    assert run_artifacts.history(run, *columns) == run_artifacts.history(other, *columns)
    speed = "train/tokens_per_second"
    one, two = (run_artifacts.scalars(path) for path in (run, other))
    assert {k: v for k, v in one.items() if k != speed} == {k: v for k, v in two.items() if k != speed}


def test_a_rollback_does_not_start_from_a_checkpoint_before_the_validation_that_diverged(
    run_cli, tiny, tmp_path, monkeypatch
):
    monkeypatch.setattr(interrupt, "SAVE_BEFORE_VALIDATION_SECONDS", 0)
    nan = ["+callbacks.nan._target_=tests.training.fault_injection.NaNValidation", "+callbacks.nan.step=8"]
    outcome = run_cli("train", *tiny, *RUN, *nan)
    assert outcome.code == 1, outcome.err
    assert "the validation loss is nan at step 8" in outcome.err
    assert run_artifacts.checkpoint(tmp_path / "run")["global_step"] == 4
    assert run_cli("train", "resume=run").code == 0


def test_weights_that_are_not_finite_before_a_validation_leave_all_checkpoints(run_cli, tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(interrupt, "SAVE_BEFORE_VALIDATION_SECONDS", 0)
    overflow = ["+callbacks.fault._target_=tests.training.fault_injection.Fault", "+callbacks.fault.step=8"]
    outcome = run_cli("train", *tiny, *RUN, *overflow)
    assert (outcome.code, "the weights are not finite after step 8" in outcome.err) == (1, True)
    last = run_artifacts.checkpoint(tmp_path / "run")
    assert (last["global_step"], last["chargpt"].get("validation_due")) == (4, None)
    assert (tmp_path / "run" / "checkpoints" / "previous.ckpt").exists()
