"""Ctrl-C and SIGTERM at any time: the step is finished, a checkpoint is saved, and the run can be resumed."""

import shlex
import signal
from pathlib import Path

import pytest

from tests.training import run_artifacts

QUIET = "callbacks.samples.max_new_tokens=0"  # no samples at validations: they only take time
MORE = ["trainer.max_steps=12", "trainer.val_check_interval=4", "trainer.log_every_n_steps=3", "hydra.run.dir=run"]


EPOCHS = ["trainer.max_steps=-1", "trainer.max_epochs=2", "trainer.limit_train_batches=6"]


def signal_at(name: str, **when: int) -> list[str]:
    overrides = [f"+callbacks.signal.{key}={value}" for key, value in ({"name": name} | when).items()]
    return ["+callbacks.signal._target_=tests.training.fault_injection.SignalAt", *overrides]


@pytest.fixture(scope="module")
def trained() -> dict[tuple[str, ...], Path]:
    """Uninterrupted runs by their overrides, so that each is trained once."""
    return {}


@pytest.fixture
def uninterrupted(run_cli, tiny, trained, tmp_path: Path):
    """A function that trains with `MORE` and further overrides without interruption and returns the directory."""

    def train(*overrides: str) -> Path:
        if overrides not in trained:
            outcome = run_cli("train", *tiny, *MORE, *overrides, "hydra.run.dir=uninterrupted")
            assert outcome.code == 0, outcome.err
            trained[overrides] = tmp_path / "uninterrupted"
        return trained[overrides]

    return train


COLUMNS = ("step", "train_loss", "val_loss", "lr", "grad_norm")


@pytest.mark.parametrize(
    ("name", "when", "step", "overrides"),
    [
        ("SIGTERM", {"batch": 1}, 1, []),  # before the first checkpoint
        ("SIGINT", {"step": 8}, 8, []),  # during a validation
        # During the last validation:
        pytest.param("SIGTERM", {"step": 12}, 12, ["trainer.ema_decay=0.9"], marks=pytest.mark.slow),
        # Between the micro-batches of step 5:
        pytest.param("SIGINT", {"batch": 9}, 5, ["trainer.accumulate_grad_batches=2"], marks=pytest.mark.slow),
        pytest.param("SIGTERM", {"batch": 7}, 7, EPOCHS, marks=pytest.mark.slow),
        pytest.param("SIGTERM", {"batch": 7}, 7, ["trainer.overfit_batches=3"], marks=pytest.mark.slow),
        pytest.param(
            "SIGTERM",
            {"batch": 7},
            7,
            ["trainer.gradient_clip_val=0.01", "trainer.gradient_clip_algorithm=value"],
            marks=pytest.mark.slow,
        ),
        pytest.param("SIGTERM", {"batch": 7}, 7, ["trainer.limit_val_batches=0"], marks=pytest.mark.slow),
    ],
    ids=lambda value: "-".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else None,
)
def test_a_run_resumed_after_a_signal_equals_an_uninterrupted_run(
    run_cli, tiny, uninterrupted, tmp_path: Path, name, when, step, overrides
):
    run = tmp_path / "run"
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    outcome = run_cli("train", *tiny, *MORE, *overrides, *signal_at(name, **when))
    assert outcome.code == 3
    assert outcome.err.splitlines()[-1].startswith("train.py: interrupted")
    assert "resume=run" in outcome.err
    status = run_artifacts.status(run)
    assert (status["state"], status["step"], status["reason"]) == ("interrupted", step, name)
    assert not (run / "metrics.json").exists()
    assert run_artifacts.checkpoint(run)["global_step"] == step
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers

    outcome = run_cli("train", QUIET, "resume=run")
    assert outcome.code == 0, outcome.err
    expected = uninterrupted(*overrides)
    assert run_artifacts.status(run)["state"] == "finished"
    assert not run_artifacts.differences(run_artifacts.training_state(run), run_artifacts.training_state(expected))
    assert run_artifacts.history(run, *COLUMNS) == run_artifacts.history(expected, *COLUMNS)
    timed = {key for key in run_artifacts.metrics(run) if key.endswith(("_seconds", "_second"))}
    metrics, expected_metrics = (
        {key: value for key, value in run_artifacts.metrics(directory).items() if key not in timed}
        for directory in (run, expected)
    )
    assert metrics == expected_metrics


def test_a_signal_after_the_last_step_finishes_the_run(run_cli, tiny, tmp_path: Path):
    outcome = run_cli("train", *tiny, *MORE, "trainer.limit_val_batches=0", *signal_at("SIGINT", batch=12))
    assert outcome.code == 0, outcome.err
    assert run_artifacts.status(tmp_path / "run")["state"] == "finished"


@pytest.mark.slow
def test_the_printed_command_resumes_a_run_that_is_interrupted_twice(run_cli, tiny, uninterrupted, tmp_path: Path):
    """The name of the run directory contains a space."""
    run, overrides = tmp_path / "my run", [*tiny, *MORE, 'hydra.run.dir="my run"', *signal_at("SIGINT", batch=2)]
    for second_signal in (signal_at("SIGTERM", batch=7), []):
        outcome = run_cli("train", *overrides)
        assert outcome.code == 3
        _, script, *overrides = shlex.split(outcome.err.splitlines()[-1].split("Resume with: ")[1])
        assert Path(script).name == "train.py"
        overrides += [QUIET, *second_signal]
    assert run_artifacts.status(run)["step"] == 7
    outcome = run_cli("train", *overrides)
    assert outcome.code == 0, outcome.err
    expected = uninterrupted()
    assert not run_artifacts.differences(run_artifacts.training_state(run), run_artifacts.training_state(expected))
    assert run_artifacts.history(run, *COLUMNS) == run_artifacts.history(expected, *COLUMNS)


@pytest.fixture
def handlers():
    """Restores the signal handlers, which Lightning's teardown disables."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_second_ctrl_c_quits_immediately_and_keeps_the_last_checkpoint(
    handlers, run_cli, tiny, uninterrupted, tmp_path: Path
):
    run = tmp_path / "run"
    outcome = run_cli("train", *tiny, *MORE, *signal_at("SIGINT", batch=6, times=2))
    assert outcome.code == 3
    assert outcome.err.splitlines()[-1].endswith("train.py resume=run")
    assert "Traceback" not in outcome.err
    assert run_artifacts.status(run)["state"] == "interrupted"
    assert run_artifacts.checkpoint(run)["global_step"] == 4, "the last checkpoint is that of the validation at step 4"
    assert run_cli("train", QUIET, "resume=run").code == 0
    expected = uninterrupted()
    assert not run_artifacts.differences(run_artifacts.training_state(run), run_artifacts.training_state(expected))
    assert run_artifacts.history(run, *COLUMNS) == run_artifacts.history(expected, *COLUMNS)


SCONTROL = '#!/bin/sh\necho "$@" >> "$(dirname "$0")/requests"\n'


@pytest.mark.parametrize(
    ("slurm", "requests"),
    [({"SLURM_JOB_ID": "77"}, "requeue 77\n"), pytest.param({}, None, marks=pytest.mark.slow)],
)
def test_slurms_preemption_signal_saves_the_run_and_requeues_the_job(
    run_cli, tiny, uninterrupted, tmp_path: Path, monkeypatch, slurm, requests
):
    (tmp_path / "bin").mkdir()
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.write_text(SCONTROL)
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=":")
    for name, value in slurm.items():
        monkeypatch.setenv(name, value)
    outcome = run_cli("train", *tiny, *MORE, *signal_at("SIGUSR1", batch=6))
    assert outcome.code == 3
    run = tmp_path / "run"
    assert (run_artifacts.status(run)["state"], run_artifacts.status(run)["reason"]) == ("interrupted", "SIGUSR1")
    log = tmp_path / "bin" / "requests"
    assert (log.read_text() if log.exists() else None) == requests
    assert run_cli("train", *tiny, *MORE, "resume=auto").code == 0, "the command that a requeued job runs again"
    assert not run_artifacts.differences(
        run_artifacts.training_state(run), run_artifacts.training_state(uninterrupted())
    )
