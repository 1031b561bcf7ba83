"""Ctrl-C and SIGTERM wherever they fall: the step is finished, everything is saved, and the run can go on."""

import shlex
import signal
from pathlib import Path

import pytest

from tests.training import run_artifacts

QUIET = "callbacks.samples.max_new_tokens=0"  # no samples at validations: they only take time here
MORE = ["trainer.max_steps=12", "trainer.val_check_interval=4", "trainer.log_every_n_steps=3", "hydra.run.dir=run"]


def cut(name: str, **when: int) -> list[str]:
    words = [f"+callbacks.cut.{key}={value}" for key, value in ({"name": name} | when).items()]
    return ["+callbacks.cut._target_=tests.training.fault_injection.SignalAt", *words]


@pytest.fixture(scope="module")
def whole() -> dict[tuple[str, ...], Path]:
    """Uncut runs by their words, so that each is trained once."""
    return {}


@pytest.fixture
def uncut(run_cli, tiny, whole, tmp_path: Path):
    """Trains what `MORE` says, with more words, in one go; gives the directory."""

    def train(*words: str) -> Path:
        if words not in whole:
            outcome = run_cli("train", *tiny, *MORE, *words, "hydra.run.dir=uncut")
            assert outcome.code == 0, outcome.err
            whole[words] = tmp_path / "uncut"
        return whole[words]

    return train


COLUMNS = ("step", "train_loss", "val_loss", "lr", "grad_norm")


@pytest.mark.parametrize(
    ("name", "when", "step", "words"),
    [
        ("SIGTERM", {"batch": 1}, 1, []),  # before there is any checkpoint
        ("SIGINT", {"step": 8}, 8, []),  # in the middle of a validation
        ("SIGINT", {"batch": 9}, 5, ["trainer.accumulate_grad_batches=2"]),  # between two passes of step 5
    ],
    ids=lambda value: "-".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else None,
)
def test_a_signal_ends_the_step_and_the_run_goes_on_as_if_nothing_was(
    run_cli, tiny, uncut, tmp_path: Path, name, when, step, words
):
    run = tmp_path / "run"
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    outcome = run_cli("train", *tiny, *MORE, *words, *cut(name, **when))
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
    whole = uncut(*words)
    assert run_artifacts.status(run)["state"] == "finished"
    assert not run_artifacts.differences(run_artifacts.learned(run), run_artifacts.learned(whole))
    assert run_artifacts.history(run, *COLUMNS) == run_artifacts.history(whole, *COLUMNS)
    timed = {key for key in run_artifacts.metrics(run) if key.endswith(("_seconds", "_second"))}
    ours, theirs = ({k: v for k, v in run_artifacts.metrics(r).items() if k not in timed} for r in (run, whole))
    assert ours == theirs


def test_a_signal_at_the_last_step_finishes_the_run(run_cli, tiny, tmp_path: Path):
    outcome = run_cli("train", *tiny, *MORE, *cut("SIGINT", step=12))
    assert outcome.code == 0, outcome.err
    assert run_artifacts.status(tmp_path / "run")["state"] == "finished"


def test_a_run_that_was_interrupted_twice_goes_on_as_it_was_told(run_cli, tiny, uncut, tmp_path: Path):
    """The command in the message can be typed as it stands, also with a blank in the folder's name."""
    run, words = tmp_path / "my run", [*tiny, *MORE, 'hydra.run.dir="my run"', *cut("SIGINT", batch=2)]
    for cut_again in (cut("SIGTERM", batch=7), []):
        outcome = run_cli("train", *words)
        assert outcome.code == 3
        _, script, *words = shlex.split(outcome.err.splitlines()[-1].split("Go on with: ")[1])
        assert script == "train.py"
        words += [QUIET, *cut_again]
    assert run_artifacts.status(run)["step"] == 7
    outcome = run_cli("train", *words)
    assert outcome.code == 0, outcome.err
    whole = uncut()
    assert not run_artifacts.differences(run_artifacts.learned(run), run_artifacts.learned(whole))
    assert run_artifacts.history(run, *COLUMNS) == run_artifacts.history(whole, *COLUMNS)


@pytest.fixture
def handlers():
    """Puts the signals' handlers back: Lightning leaves them switched off when it is torn down."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_second_ctrl_c_quits_at_once_and_leaves_the_last_checkpoint(handlers, run_cli, tiny, uncut, tmp_path: Path):
    run = tmp_path / "run"
    outcome = run_cli("train", *tiny, *MORE, *cut("SIGINT", batch=6, times=2))
    assert outcome.code == 3
    assert outcome.err.splitlines()[-1].endswith("python train.py resume=run")
    assert "Traceback" not in outcome.err
    assert run_artifacts.status(run)["state"] == "interrupted"
    assert run_artifacts.checkpoint(run)["global_step"] == 4, "the validation at 4 was the last to save"
    assert run_cli("train", QUIET, "resume=run").code == 0
    whole = uncut()
    assert not run_artifacts.differences(run_artifacts.learned(run), run_artifacts.learned(whole))
    assert run_artifacts.history(run, *COLUMNS) == run_artifacts.history(whole, *COLUMNS)


SCONTROL = '#!/bin/sh\necho "$@" >> "$(dirname "$0")/asked"\n'


@pytest.mark.parametrize(("slurm", "asked"), [({"SLURM_JOB_ID": "77"}, "requeue 77\n"), ({}, None)])
def test_slurms_warning_saves_and_requeues_the_job(run_cli, tiny, uncut, tmp_path: Path, monkeypatch, slurm, asked):
    (tmp_path / "bin").mkdir()
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.write_text(SCONTROL)
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=":")
    for name, value in slurm.items():
        monkeypatch.setenv(name, value)
    outcome = run_cli("train", *tiny, *MORE, *cut("SIGUSR1", batch=6))
    assert outcome.code == 3
    run = tmp_path / "run"
    assert (run_artifacts.status(run)["state"], run_artifacts.status(run)["reason"]) == ("interrupted", "SIGUSR1")
    found = (tmp_path / "bin" / "asked").read_text() if (tmp_path / "bin" / "asked").exists() else None
    assert found == asked
    assert run_cli("train", *tiny, *MORE, "resume=auto").code == 0, "what the job's script says when it runs again"
    assert not run_artifacts.differences(run_artifacts.learned(run), run_artifacts.learned(uncut()))
