"""resume=auto: the content of the directory decides whether a run is started, resumed, restarted or skipped."""

import errno
import json
import logging
import os
import shutil

import pytest
import torch
import yaml

from tests.training import run_artifacts


@pytest.fixture(autouse=True)
def log(caplog):
    caplog.set_level(logging.INFO)
    return caplog


AUTO = ["resume=auto", "hydra.run.dir=run"]


def set_state(run, state: str, reason: str = "") -> None:
    status = run_artifacts.status(run)
    (run / "status.json").write_text(json.dumps(status | {"state": state, "reason": reason}))


@pytest.fixture
def run(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


def test_a_run_without_a_directory_is_started(run_cli, tiny, tmp_path):
    outcome = run_cli("train", *tiny, *AUTO)
    assert outcome.code == 0, outcome.err
    assert run_artifacts.status(tmp_path / "run")["state"] == "finished"


def test_a_finished_run_is_skipped_and_not_changed(run_cli, tiny, run, log):
    before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    outcome = run_cli("train", *tiny, *AUTO)
    assert outcome.code == 0
    loss = run_artifacts.metrics(run)["val_loss"]
    assert f"run is already finished: validation loss {loss:.4f}" in log.text
    assert {file: file.read_bytes() for file in run.rglob("*") if file.is_file()} == before


@pytest.mark.parametrize("state", ["interrupted", "running"])
def test_an_interrupted_run_is_resumed(run_cli, tiny, run, state, log):
    (run / "metrics.json").unlink()
    shutil.copy(run / "checkpoints" / "previous.ckpt", run / "checkpoints" / "last.ckpt")
    (run / "checkpoints" / "previous.ckpt").unlink()
    set_state(run, state)  # "running" without a lock: kill -9
    outcome = run_cli("train", *tiny, *AUTO)
    assert outcome.code == 0, outcome.err
    assert "resuming run from its last checkpoint" in log.text
    assert run_artifacts.metrics(run)["steps"] == 20
    assert [row["step"] for row in run_artifacts.history(run)] == ["1", "5", "10", "15", "20"]


def test_a_failed_run_is_resumed_from_its_last_checkpoint(run_cli, tiny, run, log):
    broken = ["+callbacks.broken._target_=tests.training.fault_injection.RaiseAfterStep", "+callbacks.broken.step=15"]
    shutil.rmtree(run)
    with pytest.raises(RuntimeError):
        run_cli("train", *tiny, *AUTO, *broken)
    assert run_artifacts.status(run)["state"] == "failed"
    outcome = run_cli("train", *tiny, *AUTO)
    assert outcome.code == 0, outcome.err
    assert "resuming run from its last checkpoint" in log.text
    assert [row["step"] for row in run_artifacts.history(run)] == ["1", "5", "10", "15", "20"]


def test_a_run_that_failed_before_its_first_checkpoint_is_restarted_and_its_log_is_kept(run_cli, tiny, run, log):
    (run / "metrics.json").unlink()
    shutil.rmtree(run / "checkpoints")
    set_state(run, "failed", "RuntimeError: the disk is full")
    (run / "train.log").write_text("first attempt\n")
    outcome = run_cli("train", *tiny, *AUTO)
    assert outcome.code == 0, outcome.err
    assert "failed at step 20 (RuntimeError: the disk is full): starting again" in log.text
    assert run_artifacts.status(run)["state"] == "finished"
    assert (run / "train.log").read_text().startswith("first attempt\n")
    assert [row["step"] for row in run_artifacts.history(run)] == ["1", "5", "10", "15", "20"], "each step once"


@pytest.mark.parametrize(("state", "code"), [("diverged", 1), ("pruned", 0)])
def test_a_diverged_or_pruned_run_is_skipped(run_cli, tiny, run, state, code, log):
    (run / "metrics.json").unlink()
    set_state(run, state, "for a reason")
    outcome = run_cli("train", *tiny, *AUTO)
    assert outcome.code == code
    assert f"{state} at step 20 (for a reason); delete it to run it again" in log.text
    assert run_artifacts.status(run)["state"] == state


def test_a_finished_run_can_be_extended_but_not_shortened(run_cli, tiny, run):
    outcome = run_cli("train", *tiny, *AUTO, "trainer.max_steps=10")
    assert outcome.code == 2
    assert "planned for trainer.max_steps=20" in outcome.err
    outcome = run_cli("train", *tiny, *AUTO, "trainer.max_steps=30")
    assert outcome.code == 0, outcome.err
    assert run_artifacts.metrics(run)["steps"] == 30


@pytest.mark.parametrize(
    "override", ["seed=2", "model.n_layer=1", "optimizer.lr=0.5", "trainer.gradient_clip_val=null"]
)
def test_a_different_run_in_the_directory_is_refused_with_the_difference(run_cli, tiny, run, override):
    before = run_artifacts.status(run)
    outcome = run_cli("train", *tiny, *AUTO, override)
    assert outcome.code == 2
    key, _, value = override.partition("=")
    assert f"contains a different run: {key}=" in outcome.err
    assert ("None" if value == "null" else value) in outcome.err
    assert run_artifacts.status(run) == before


@pytest.mark.parametrize(
    "override", ["trainer.devices=1", "trainer.log_every_n_steps=2", "name=other", "~callbacks.samples"]
)
def test_a_setting_outside_the_identity_may_differ(run_cli, tiny, run, override, log):
    tiny = [other for other in tiny if not other.startswith(("callbacks", "trainer.log"))]
    outcome = run_cli("train", *tiny, *AUTO, override)
    assert outcome.code == 0, outcome.err
    assert "is already finished" in log.text


def test_a_finished_run_on_a_changed_text_is_refused(run_cli, tiny, text, tmp_path):
    (tmp_path / "mine.txt").write_text(text)
    overrides = [*tiny, "data.path=mine.txt", "trainer.max_steps=2", *AUTO]
    assert run_cli("train", *overrides).code == 0
    (tmp_path / "mine.txt").write_text(text + "!")
    outcome = run_cli("train", *overrides)
    assert outcome.code == 2
    assert "was trained on another text" in outcome.err


def test_damaged_metrics_are_a_user_error(run_cli, tiny, run):
    (run / "metrics.json").write_text("{}")
    outcome = run_cli("train", *tiny, *AUTO)
    assert (outcome.code, len(outcome.err.splitlines())) == (2, 1)
    assert "metrics.json is damaged: delete it" in outcome.err


def test_a_user_error_leaves_no_directory(run_cli, tiny, tmp_path):
    outcome = run_cli("train", *tiny, "resume=auto", "hydra.run.dir=new/run", "model.n_head=3")
    assert outcome.code == 2
    assert not list(tmp_path.iterdir())


def test_a_failed_run_with_other_settings_is_not_deleted(run_cli, tiny, run):
    (run / "metrics.json").unlink()
    set_state(run, "failed")
    before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file() and file.name != ".lock"}
    outcome = run_cli("train", *tiny, *AUTO, "seed=2")
    assert outcome.code == 2
    assert "contains a different run: seed=1337 there, 2 here" in outcome.err
    assert {f: f.read_bytes() for f in run.rglob("*") if f.is_file() and f.name != ".lock"} == before


@pytest.mark.slow
def test_a_finished_run_that_fails_while_it_is_extended_can_be_resumed(run_cli, tiny, run):
    broken = ["+callbacks.broken._target_=tests.training.fault_injection.RaiseAfterStep", "+callbacks.broken.step=25"]
    with pytest.raises(RuntimeError):
        run_cli("train", *tiny, *AUTO, "trainer.max_steps=30", *broken)
    assert run_artifacts.status(run)["state"] == "failed"
    outcome = run_cli("train", *tiny, *AUTO, "trainer.max_steps=30")
    assert outcome.code == 0, outcome.err
    assert [row["step"] for row in run_artifacts.history(run)] == ["1", "5", "10", "15", "20", "25", "30"]
    assert {file.name for file in run.glob("metrics*")} == {"metrics.json"}


def test_a_run_with_a_partially_written_first_checkpoint_can_be_resumed_by_name(run_cli, tiny, run):
    for file in (run / "checkpoints").iterdir():
        file.unlink()
    (run / "checkpoints" / ".last.ckpt-abc").write_text("half")
    (run / "metrics.json").unlink()
    set_state(run, "running")
    outcome = run_cli("train", "resume=run")
    assert outcome.code == 0, outcome.err
    assert run_artifacts.metrics(run)["steps"] == 20
    assert not list((run / "checkpoints").glob(".*"))


def test_a_run_interrupted_before_its_first_checkpoint_can_be_resumed_by_name(run_cli, tiny, run):
    """It starts from step 0, with its saved config."""
    shutil.rmtree(run / "checkpoints")
    (run / "metrics.json").unlink()
    set_state(run, "interrupted")
    outcome = run_cli("train", "resume=run")
    assert outcome.code == 0, outcome.err
    assert run_artifacts.metrics(run)["steps"] == 20
    assert [row["step"] for row in run_artifacts.history(run)] == ["1", "5", "10", "15", "20"]


def test_a_run_older_than_a_setting_is_the_same_run(run_cli, tiny, run, log):
    """The setting must have its older default."""
    file = run / ".hydra" / "config.yaml"
    config = yaml.safe_load(file.read_text())
    assert config["data"].pop("block_warmup") == 0
    assert config["trainer"].pop("ema_decay") is None
    file.write_text(yaml.safe_dump(config))
    for name in ("last", "previous", "best"):
        path = run / "checkpoints" / f"{name}.ckpt"
        state = torch.load(path, weights_only=True)
        state["chargpt"]["version"] = "0.1.0"  # its files have no checksum
        del state["chargpt"]["config"]["data"]["block_warmup"], state["chargpt"]["config"]["trainer"]["ema_decay"]
        torch.save(state, path)
    outcome = run_cli("train", *tiny, *AUTO)
    assert outcome.code == 0, outcome.err
    assert "is already finished" in log.text
    extended = run_cli("train", *tiny, *AUTO, "data.block_warmup=0", "trainer.max_steps=30")
    assert extended.code == 0, extended.err
    assert run_artifacts.metrics(run)["steps"] == 30
    different = run_cli("train", *tiny, *AUTO, "data.block_warmup=5")
    assert different.code == 2
    assert "data.block_warmup" in different.err


@pytest.mark.parametrize("overrides", [["resume=run"], ["resume=auto", "hydra.run.dir=run"]], ids=" ".join)
def test_a_read_only_run_is_refused_and_not_changed(run_cli, tiny, run, monkeypatch, overrides):
    real_open = os.open

    def open_without_permission(path, *args, **kwargs):
        if str(path).endswith(".lock"):
            raise PermissionError(errno.EACCES, "Permission denied")
        return real_open(path, *args, **kwargs)

    monkeypatch.setattr(os, "open", open_without_permission)
    before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    outcome = run_cli("train", *(tiny if "resume=auto" in overrides else []), "trainer.max_steps=40", *overrides)
    assert (outcome.code, len(outcome.err.splitlines())) == (2, 1)
    assert "run cannot be written: Permission denied" in outcome.err
    assert {file: file.read_bytes() for file in run.rglob("*") if file.is_file()} == before
