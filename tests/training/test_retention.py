"""`checkpoint.keep`: what a finished run keeps, what is possible with it, and what is refused."""

import logging
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import chargpt
from chargpt.errors import TrainingError, UserError
from chargpt.runs import retention
from chargpt.training import retention as removal
from tests.conftest import process
from tests.training import run_artifacts

EVERY = {"last.ckpt", "previous.ckpt", "best.ckpt"}
AT_12 = ["+callbacks.signal._target_=tests.training.fault_injection.SignalAt", "+callbacks.signal.name=SIGINT"]
AT_12 += ["+callbacks.signal.batch=12"]


def files(run: Path) -> set[str]:
    return {path.name for path in (run / "checkpoints").glob("*.ckpt")}


def with_kept(finished: Path, run: Path, keep: str) -> Path:
    """A copy of a finished run as `checkpoint.keep` leaves it."""
    shutil.copytree(finished, run)
    config = run / ".hydra" / "config.yaml"
    config.write_text(config.read_text().replace("keep: auto", f"keep: {keep}"))
    retention_script(run, keep)
    return run


def retention_script(run: Path, keep: str, kill_at: int = -1) -> int:
    """Removes checkpoints in a new process, which kills itself before its `kill_at`-th change of a file."""
    script = f"""
import os, signal
from pathlib import Path
from chargpt.runs.directory import RunDirectory
from chargpt.training.retention import remove_checkpoints

changes = 0

def counted(change):
    def run(self, *arguments, **settings):
        global changes
        if self.exists():
            if changes == {kill_at}:
                os.kill(os.getpid(), signal.SIGKILL)
            changes += 1
        return change(self, *arguments, **settings)
    return run

Path.replace, Path.unlink = counted(Path.replace), counted(Path.unlink)
remove_checkpoints(RunDirectory({str(run)!r}), {keep!r})
"""
    return subprocess.run([sys.executable, "-c", script], check=False).returncode


@pytest.mark.parametrize(
    "keep", [*(pytest.param(keep, marks=pytest.mark.slow) for keep in ("all", "best_only")), "weights_only"]
)
def test_a_finished_run_keeps_what_is_selected_and_its_model_can_be_used(run_cli, tiny, tmp_path: Path, caplog, keep):
    caplog.set_level(logging.INFO)
    outcome = run_cli("train", *tiny, f"checkpoint={keep}", "hydra.run.dir=outputs/a/run")
    assert outcome.code == 0, outcome.err
    run = tmp_path / "outputs" / "a" / "run"
    assert files(run) == (EVERY if keep == "all" else {"best.ckpt"})
    assert ("optimizer_states" in run_artifacts.checkpoint(run, "best")) == (keep != "weights_only")
    assert (f"checkpoint={keep}: kept" in caplog.text) == (keep != "all")
    used = [
        ("sample", "run=latest", "max_new_tokens=5"),
        ("evaluate", "run=latest"),
        ("visualize", "run=latest", "text=the king"),
        ("export", "run=latest"),
        ("compare", "runs=outputs"),
    ]
    for command, *overrides in used:
        outcome = run_cli(command, *overrides)
        assert outcome.code == 0, (command, outcome.err)
    assert len(chargpt.load(run).generate(max_new_tokens=5)) == 6


def test_the_weights_are_those_of_the_best_checkpoint(finished, tmp_path: Path):
    run = with_kept(finished, tmp_path / "run", "weights_only")
    expected = run_artifacts.checkpoint(finished, "best")
    content = run_artifacts.checkpoint(run, "best")
    assert not run_artifacts.differences(content["state_dict"], expected["state_dict"])
    assert content["chargpt"] == expected["chargpt"]
    assert (run / "checkpoints" / "best.ckpt").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("keep", [pytest.param("best_only", marks=pytest.mark.slow), "weights_only"])
def test_nothing_is_removed_before_the_run_has_finished(run_cli, tiny, finished, tmp_path: Path, keep):
    outcome = run_cli("train", *tiny, *AT_12, f"checkpoint={keep}", "hydra.run.dir=run")
    assert outcome.code == 3, outcome.err
    run = tmp_path / "run"
    assert files(run) == EVERY
    assert run_artifacts.checkpoint(run)["optimizer_states"]
    outcome = run_cli("train", "resume=run")
    assert outcome.code == 0, outcome.err
    assert files(run) == {"best.ckpt"}
    weights = [run_artifacts.checkpoint(path, "best")["state_dict"] for path in (run, finished)]
    assert not run_artifacts.differences(*weights)


def test_the_selection_may_change_when_a_run_is_resumed(run_cli, tiny, tmp_path: Path):
    overrides = [*tiny, *AT_12, "checkpoint=weights_only", "checkpoint.every_n_steps=3", "hydra.run.dir=run"]
    assert run_cli("train", *overrides).code == 3
    assert run_cli("train", "resume=run", "checkpoint=all").code == 0
    assert files(tmp_path / "run") == EVERY
    assert "every_n_steps: 3" in (tmp_path / "run" / ".hydra" / "config.yaml").read_text()


@pytest.mark.parametrize("keep", [pytest.param("best_only", marks=pytest.mark.slow), "weights_only"])
@pytest.mark.parametrize("kill_at", [0, 1, 2, 3])
def test_a_run_killed_while_checkpoints_are_removed_is_finished_and_complete(
    run_cli, finished, tmp_path: Path, keep, kill_at
):
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    code = retention_script(run, keep, kill_at)
    assert code in (-signal.SIGKILL, 0)
    left = {name for name in files(run) if not name.startswith(".")}
    assert "best.ckpt" in left
    assert "last.ckpt" in left or left == {"best.ckpt"}
    assert chargpt.load(run).step == chargpt.load(finished).step
    if "last.ckpt" in left:  # nothing has been lost
        outcome = run_cli("train", "resume=run", "trainer.max_steps=25")
        assert outcome.code == 0, outcome.err
        assert run_artifacts.metrics(run)["steps"] == 25


def test_a_full_disk_is_a_warning_and_keeps_all_checkpoints(run_cli, tiny, tmp_path: Path, monkeypatch, caplog):
    def full(*_):
        raise TrainingError("No space left on device")

    monkeypatch.setattr(removal, "torch_file", type("Full", (), {"read": removal.torch_file.read, "save": full}))
    outcome = run_cli("train", *tiny, "checkpoint=weights_only", "hydra.run.dir=run")
    assert outcome.code == 0, outcome.err
    assert "not all checkpoints were removed: No space left" in caplog.text
    assert files(tmp_path / "run") == EVERY


@pytest.mark.slow
@pytest.mark.parametrize("keep", ["best_only", "weights_only"])
@pytest.mark.parametrize("how", ["resume=run", "resume=auto"])
def test_a_run_that_cannot_be_trained_longer_says_what_to_do_instead(
    run_cli, tiny, finished, tmp_path: Path, keep, how
):
    run = with_kept(finished, tmp_path / "run", keep)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    same = [*tiny, "hydra.run.dir=run"] if how == "resume=auto" else []
    outcome = run_cli("train", *same, how, "trainer.max_steps=30")
    assert (outcome.code, len(outcome.err.splitlines())) == (2, 1)
    assert f"last.ckpt, from which it could be trained longer, was removed (checkpoint.keep={keep})" in outcome.err
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    advice = shlex.split(outcome.err.rpartition("train.py ")[2])
    outcome = run_cli("train", *advice)
    assert outcome.code == 0, outcome.err
    longer = run if keep == "best_only" else next((tmp_path / "outputs").rglob("metrics.json")).parent
    assert run_artifacts.metrics(longer)["steps"] == 40
    if keep == "weights_only":
        assert files(longer) == EVERY


def test_weights_alone_are_not_resumed(run_cli, finished, tmp_path: Path):
    with_kept(finished, tmp_path / "run", "weights_only")
    outcome = run_cli("train", "resume=run/checkpoints/best.ckpt", "trainer.max_steps=30")
    assert (outcome.code, len(outcome.err.splitlines())) == (2, 1)
    assert "contains only weights" in outcome.err


@pytest.mark.slow
def test_a_finished_run_that_kept_its_weights_is_skipped_and_repeated(run_cli, tiny, finished, tmp_path: Path, caplog):
    caplog.set_level(logging.INFO)
    with_kept(finished, tmp_path / "run", "weights_only")
    assert run_cli("train", *tiny, "resume=auto", "hydra.run.dir=run", "checkpoint=weights_only").code == 0
    assert "is already finished" in caplog.text
    outcome = run_cli("train", "rerun=run", "hydra.run.dir=again")
    assert outcome.code == 0, outcome.err
    assert "all non-timing metrics equal" in caplog.text
    assert files(tmp_path / "again") == {"best.ckpt"}


@pytest.mark.slow
def test_the_ema_is_kept_and_the_trained_weights_are_not(run_cli, tiny, tmp_path: Path):
    outcome = run_cli("train", *tiny, "trainer.ema_decay=0.9", "checkpoint=weights_only", "hydra.run.dir=run")
    assert outcome.code == 0, outcome.err
    assert "trained_state_dict" not in run_artifacts.checkpoint(tmp_path / "run", "best")
    assert chargpt.load(tmp_path / "run").step == run_artifacts.metrics(tmp_path / "run")["best_step"]


@pytest.mark.slow
def test_a_run_on_two_devices_keeps_its_weights(tiny, tmp_path: Path):
    outcome = process(tmp_path, "train", *tiny, "trainer.devices=2", "checkpoint=weights_only", "hydra.run.dir=run")
    assert outcome.code == 0, outcome.err
    assert files(tmp_path / "run") == {"best.ckpt"}


def test_auto_keeps_everything_except_in_a_sweep(monkeypatch):
    assert retention.resolve("auto") == "all"
    monkeypatch.setenv("CHARGPT_SWEEP", "1")
    assert retention.resolve("auto") == "weights_only"
    assert retention.resolve("best_only") == "best_only"
    with pytest.raises(UserError, match=r"checkpoint\.keep=none: it must be one of auto, all"):
        retention.resolve("none")
