"""resume=auto: what stands in the directory decides whether a run begins, goes on, begins again or is skipped."""

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
def told(caplog):
    """What is told on the way."""
    caplog.set_level(logging.INFO)
    return caplog


AUTO = ["resume=auto", "hydra.run.dir=run"]


def set_state(run, state: str, reason: str = "") -> None:
    status = run_artifacts.status(run)
    (run / "status.json").write_text(json.dumps(status | {"state": state, "reason": reason}))


@pytest.fixture
def run(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


def test_where_nothing_is_it_begins(run_cli, tiny, tmp_path):
    outcome = run_cli("train", *tiny, *AUTO)
    assert outcome.code == 0, outcome.err
    assert run_artifacts.status(tmp_path / "run")["state"] == "finished"


def test_a_finished_run_is_skipped_and_not_touched(run_cli, tiny, run, told):
    before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    outcome = run_cli("train", *tiny, *AUTO)
    assert outcome.code == 0
    loss = run_artifacts.metrics(run)["val_loss"]
    assert f"run is finished already: validation loss {loss:.4f}" in told.text
    assert {file: file.read_bytes() for file in run.rglob("*") if file.is_file()} == before


@pytest.mark.parametrize("state", ["interrupted", "running"])
def test_one_that_was_cut_off_goes_on(run_cli, tiny, run, state, told):
    (run / "metrics.json").unlink()
    shutil.copy(run / "checkpoints" / "previous.ckpt", run / "checkpoints" / "last.ckpt")
    (run / "checkpoints" / "previous.ckpt").unlink()
    set_state(run, state)  # "running", but nobody holds the lock: kill -9
    outcome = run_cli("train", *tiny, *AUTO)
    assert outcome.code == 0, outcome.err
    assert "goes on where it stopped" in told.text
    assert run_artifacts.metrics(run)["steps"] == 20
    assert [row["step"] for row in run_artifacts.history(run)] == ["1", "5", "10", "15", "20"]


def test_one_that_failed_goes_on_from_its_last_checkpoint(run_cli, tiny, run, told):
    broken = ["+callbacks.broken._target_=tests.training.fault_injection.RaiseAfterStep", "+callbacks.broken.step=15"]
    shutil.rmtree(run)
    with pytest.raises(RuntimeError):
        run_cli("train", *tiny, *AUTO, *broken)
    assert run_artifacts.status(run)["state"] == "failed"
    outcome = run_cli("train", *tiny, *AUTO)
    assert outcome.code == 0, outcome.err
    assert "run goes on where it stopped" in told.text
    assert [row["step"] for row in run_artifacts.history(run)] == ["1", "5", "10", "15", "20"]


def test_one_that_failed_before_its_first_checkpoint_begins_again_and_its_log_is_kept(run_cli, tiny, run, told):
    (run / "metrics.json").unlink()
    shutil.rmtree(run / "checkpoints")
    set_state(run, "failed", "RuntimeError: the disk is full")
    (run / "train.log").write_text("what happened\n")
    outcome = run_cli("train", *tiny, *AUTO)
    assert outcome.code == 0, outcome.err
    assert "failed at step 20 (RuntimeError: the disk is full): it starts again" in told.text
    assert run_artifacts.status(run)["state"] == "finished"
    assert (run / "train.log").read_text().startswith("what happened\n")
    assert [row["step"] for row in run_artifacts.history(run)] == ["1", "5", "10", "15", "20"], "once"


@pytest.mark.parametrize(("state", "code"), [("diverged", 1), ("pruned", 0)])
def test_one_that_came_to_its_own_end_is_not_run_again(run_cli, tiny, run, state, code, told):
    (run / "metrics.json").unlink()
    set_state(run, state, "for a reason")
    outcome = run_cli("train", *tiny, *AUTO)
    assert outcome.code == code
    assert f"{state} at step 20 (for a reason); remove it to run it again" in told.text
    assert run_artifacts.status(run)["state"] == state


def test_a_later_end_goes_on_and_an_earlier_one_is_refused(run_cli, tiny, run):
    outcome = run_cli("train", *tiny, *AUTO, "trainer.max_steps=10")
    assert outcome.code == 2
    assert "planned for trainer.max_steps=20" in outcome.err
    outcome = run_cli("train", *tiny, *AUTO, "trainer.max_steps=30")
    assert outcome.code == 0, outcome.err
    assert run_artifacts.metrics(run)["steps"] == 30


@pytest.mark.parametrize("word", ["seed=2", "model.n_layer=1", "optimizer.lr=0.5", "trainer.gradient_clip_val=null"])
def test_another_run_in_its_place_is_refused_with_the_difference(run_cli, tiny, run, word):
    before = run_artifacts.status(run)
    outcome = run_cli("train", *tiny, *AUTO, word)
    assert outcome.code == 2
    key, _, value = word.partition("=")
    assert f"holds another run: {key}=" in outcome.err
    assert ("None" if value == "null" else value) in outcome.err
    assert run_artifacts.status(run) == before


@pytest.mark.parametrize(
    "word", ["trainer.devices=1", "trainer.log_every_n_steps=2", "name=other", "~callbacks.samples"]
)
def test_what_does_not_make_it_another_run_does_not_matter(run_cli, tiny, run, word, told):
    tiny = [each for each in tiny if not each.startswith(("callbacks", "trainer.log"))]
    outcome = run_cli("train", *tiny, *AUTO, word)
    assert outcome.code == 0, outcome.err
    assert "is finished already" in told.text


def test_a_text_that_has_changed_since_is_another_run(run_cli, tiny, text, tmp_path):
    (tmp_path / "mine.txt").write_text(text)
    words = [*tiny, "data.path=mine.txt", "trainer.max_steps=2", *AUTO]
    assert run_cli("train", *words).code == 0
    (tmp_path / "mine.txt").write_text(text + "!")
    outcome = run_cli("train", *words)
    assert outcome.code == 2
    assert "was trained on another text" in outcome.err


def test_a_mistake_leaves_no_directory(run_cli, tiny, tmp_path):
    outcome = run_cli("train", *tiny, "resume=auto", "hydra.run.dir=new/run", "model.n_head=3")
    assert outcome.code == 2
    assert not list(tmp_path.iterdir())


def test_one_that_failed_and_was_another_run_is_not_cleared(run_cli, tiny, run):
    (run / "metrics.json").unlink()
    set_state(run, "failed")
    before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file() and file.name != ".lock"}
    outcome = run_cli("train", *tiny, *AUTO, "seed=2")
    assert outcome.code == 2
    assert "holds another run: seed=1337 there and 2 here" in outcome.err
    assert {f: f.read_bytes() for f in run.rglob("*") if f.is_file() and f.name != ".lock"} == before


def test_a_finished_run_that_fails_as_it_goes_on_has_its_first_part_to_go_on_from(run_cli, tiny, run):
    broken = ["+callbacks.broken._target_=tests.training.fault_injection.RaiseAfterStep", "+callbacks.broken.step=25"]
    with pytest.raises(RuntimeError):
        run_cli("train", *tiny, *AUTO, "trainer.max_steps=30", *broken)
    assert run_artifacts.status(run)["state"] == "failed"
    outcome = run_cli("train", *tiny, *AUTO, "trainer.max_steps=30")
    assert outcome.code == 0, outcome.err
    assert [row["step"] for row in run_artifacts.history(run)] == ["1", "5", "10", "15", "20", "25", "30"]
    assert {file.name for file in run.glob("metrics*")} == {"metrics.json"}


def test_one_whose_first_checkpoint_was_half_written_can_be_resumed_by_name(run_cli, tiny, run):
    for file in (run / "checkpoints").iterdir():
        file.unlink()
    (run / "checkpoints" / ".last.ckpt-abc").write_text("half")
    (run / "metrics.json").unlink()
    set_state(run, "running")
    outcome = run_cli("train", "resume=run")
    assert outcome.code == 0, outcome.err
    assert run_artifacts.metrics(run)["steps"] == 20
    assert not list((run / "checkpoints").glob(".*"))


def test_one_that_was_cut_off_before_its_first_checkpoint_can_be_resumed_by_name(run_cli, tiny, run):
    """And goes on from nothing, with its own config."""
    shutil.rmtree(run / "checkpoints")
    (run / "metrics.json").unlink()
    set_state(run, "interrupted")
    outcome = run_cli("train", "resume=run")
    assert outcome.code == 0, outcome.err
    assert run_artifacts.metrics(run)["steps"] == 20
    assert [row["step"] for row in run_artifacts.history(run)] == ["1", "5", "10", "15", "20"]


def test_a_run_from_before_a_setting_came_is_the_same_run(run_cli, tiny, run, told):
    """What it does not name, and what is as it was then."""
    old = run / ".hydra" / "config.yaml"
    config = yaml.safe_load(old.read_text())
    assert config["data"].pop("block_warmup") == 0
    assert config["trainer"].pop("ema_decay") is None
    old.write_text(yaml.safe_dump(config))
    for name in ("last", "previous", "best"):
        path = run / "checkpoints" / f"{name}.ckpt"
        state = torch.load(path, weights_only=True)
        state["chargpt"]["version"] = "0.1.0"  # which had no seals
        del state["chargpt"]["config"]["data"]["block_warmup"], state["chargpt"]["config"]["trainer"]["ema_decay"]
        torch.save(state, path)
    outcome = run_cli("train", *tiny, *AUTO)
    assert outcome.code == 0, outcome.err
    assert "is finished already" in told.text
    again = run_cli("train", *tiny, *AUTO, "data.block_warmup=0", "trainer.max_steps=30")
    assert again.code == 0, again.err
    assert run_artifacts.metrics(run)["steps"] == 30
    other = run_cli("train", *tiny, *AUTO, "data.block_warmup=5")
    assert other.code == 2
    assert "data.block_warmup" in other.err


@pytest.mark.parametrize("words", [["resume=run"], ["resume=auto", "hydra.run.dir=run"]], ids=" ".join)
def test_a_run_in_which_nothing_may_be_written_is_left_as_it_is(run_cli, tiny, run, monkeypatch, words):
    real = os.open

    def refused(path, *args, **kwargs):
        if str(path).endswith(".lock"):
            raise PermissionError(errno.EACCES, "Permission denied")
        return real(path, *args, **kwargs)

    monkeypatch.setattr(os, "open", refused)
    before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    outcome = run_cli("train", *(tiny if "resume=auto" in words else []), "trainer.max_steps=40", *words)
    assert (outcome.code, len(outcome.err.splitlines())) == (2, 1)
    assert "run cannot be written: Permission denied" in outcome.err
    assert {file: file.read_bytes() for file in run.rglob("*") if file.is_file()} == before
