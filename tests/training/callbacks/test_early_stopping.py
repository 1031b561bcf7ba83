"""callbacks=early_stopping: stops, says so, and resumes as if it had not been interrupted."""

import shlex
import signal
from pathlib import Path

import pytest

from tests.conftest import process
from tests.training import run_artifacts

OVERRIDES = ["callbacks=early_stopping", "callbacks.early_stopping.patience=2", "logger=none", "hydra.run.dir=run"]
OVERRIDES += ["callbacks.samples.max_new_tokens=0", "trainer.max_steps=50", "trainer.val_check_interval=2"]
NO_PROGRESS = "optimizer.lr=0.0"


def resume_command(output: str) -> list[str]:
    """The overrides of the command that a run proposes for training longer."""
    line = next(line for line in output.splitlines() if line.startswith("resume  "))
    return shlex.split(line)[3:]


def test_a_run_stops_early_and_its_resume_command_trains_on(run_cli, tiny, tmp_path: Path):
    outcome = run_cli("train", *tiny, *OVERRIDES, NO_PROGRESS)
    assert outcome.code == 0, outcome.err
    run = tmp_path / "run"
    assert run_artifacts.metrics(run)["steps"] == 6
    assert "6 steps in" in outcome.out
    assert "stop  early: val_loss did not improve in 2 validations" in outcome.out
    command = resume_command(outcome.out)
    assert command == ["resume=run", "callbacks=early_stopping", "callbacks.early_stopping.patience=4"]
    assert run_cli("train", *command).code == 0
    assert run_artifacts.metrics(run)["steps"] == 10, "four validations without an improvement"


@pytest.mark.slow
def test_a_stopped_run_does_not_train_on_when_it_is_resumed(run_cli, tiny, tmp_path: Path):
    """It may have been killed before it has written metrics.json."""
    assert run_cli("train", *tiny, *OVERRIDES, NO_PROGRESS).code == 0
    run = tmp_path / "run"
    metrics = run_artifacts.metrics(run)
    (run / "metrics.json").unlink()
    outcome = run_cli("train", "resume=run")
    assert outcome.code == 0, outcome.err
    again = run_artifacts.metrics(run)
    assert (again["steps"], again["score"]) == (metrics["steps"], metrics["score"])
    assert "stop  early: " in outcome.out


@pytest.mark.slow
def test_the_count_of_validations_survives_a_kill(tiny, tmp_path: Path):
    kill = ["+callbacks.kill._target_=tests.training.fault_injection.FailRank", "+callbacks.kill.rank=0"]
    kill += ["+callbacks.kill.step=5", "+callbacks.kill.how=SIGKILL"]
    arguments = [*tiny, *OVERRIDES, NO_PROGRESS, "callbacks=[early_stopping,model_summary]"]
    killed = process(tmp_path, "train", *arguments, *kill)
    assert killed.code == -signal.SIGKILL
    assert "Params" in killed.out, "the table of model_summary"
    outcome = process(tmp_path, "train", "resume=run")
    assert outcome.code == 0, outcome.err
    assert run_artifacts.metrics(tmp_path / "run")["steps"] == 6
    command = resume_command(outcome.out)
    assert command[1] == "callbacks=[early_stopping,model_summary]"
