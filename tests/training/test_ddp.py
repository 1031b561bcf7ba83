"""Two processes train as one process does: the same losses, gradients and weights, in one run directory.

With plain SGD and a learning rate of 1, the weights change by the gradient itself.
"""

import logging
import re
import shutil
from pathlib import Path

import pytest
import torch

from tests.conftest import Outcome, process
from tests.training import run_artifacts

PLAIN = ["model.dropout=0.0", "optimizer=sgd", "optimizer.lr=1.0", "optimizer.momentum=0.0", "schedule=constant"]
PLAIN += ["data.validation_tokens=48", "trainer.gradient_clip_val=null", "trainer.log_every_n_steps=1"]
PLAIN += ["trainer.max_steps=2"]


@pytest.fixture(scope="module")
def two(tiny: list[str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome]:
    """The working directory of a run with two processes, and its output."""
    directory = tmp_path_factory.mktemp("two")
    outcome = process(directory, "train", *tiny, *PLAIN, "trainer.devices=2", "name=two")
    assert outcome.code == 0, outcome.err
    return directory, outcome


def run_of(two: tuple[Path, Outcome]) -> Path:
    (run,) = (two[0] / "outputs" / "two").iterdir()
    return run


@pytest.fixture
def one(run_cli, tiny, tmp_path: Path) -> Path:
    outcome = run_cli("train", *tiny, *PLAIN, "hydra.run.dir=one")
    assert outcome.code == 0, outcome.err
    return tmp_path / "one"


def test_two_processes_share_one_run_directory(two):
    run = run_of(two)
    assert re.fullmatch(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d", run.name)
    assert [p.name for p in two[0].iterdir()] == ["outputs"]
    assert [p.name for p in (two[0] / "outputs").iterdir()] == ["two"]
    assert run_artifacts.provenance(run)["devices"] == run_artifacts.metrics(run)["devices"] == 2
    assert run_artifacts.status(run)["state"] == "finished"
    assert len(run_artifacts.event_files(run)) == 1
    assert [row["step"] for row in run_artifacts.history(run)] == ["1", "2"]
    files = {p.name for p in (run / "checkpoints").glob("*.ckpt")}
    assert files == {"last.ckpt", "best.ckpt"}


def test_only_rank_0_prints_output(two):
    _, outcome = two
    assert outcome.err.count("parameters") == 1
    assert len(re.findall(r"^step +2 +train", outcome.err, re.MULTILINE)) == 1
    assert outcome.out.count("a sample of the best checkpoint") == 1
    assert "Warning" not in outcome.err
    assert "deprecated" not in outcome.err


def test_two_processes_train_the_same_weights_as_one(two, one):
    run = run_of(two)
    for row, expected_row in zip(run_artifacts.history(run), run_artifacts.history(one), strict=True):
        for column in ("train_loss", "grad_norm", "lr"):
            assert float(row[column]) == pytest.approx(float(expected_row[column]), rel=1e-5), column
    assert_same_weights(run, one)


def assert_same_weights(run: Path, expected: Path, tolerance: float = 1e-5) -> None:
    weights, expected_weights = (run_artifacts.checkpoint(directory)["state_dict"] for directory in (run, expected))
    assert weights.keys() == expected_weights.keys()
    for name, weight in weights.items():
        torch.testing.assert_close(weight, expected_weights[name], rtol=0, atol=tolerance, msg=name)


@pytest.mark.slow
def test_ensemble_members_train_on_the_same_sequences_in_two_processes(run_cli, tiny, tmp_path: Path):
    members = ["model=gpt_ensemble", "model.members=2", "model.ngram_embedding.dropout=0", "model.token_dropout=0"]
    overrides = [*tiny, *members, *PLAIN]
    assert run_cli("train", *overrides, "hydra.run.dir=one").code == 0
    outcome = process(tmp_path, "train", *overrides, "trainer.devices=2", "hydra.run.dir=two")
    assert outcome.code == 0, outcome.err
    assert_same_weights(tmp_path / "two", tmp_path / "one")


def test_two_processes_compute_the_same_validation_loss_also_with_padding(two, one, text):
    predictions = len(text) - int(0.9 * len(text)) - 1
    blocks = -(-predictions // 16)
    assert blocks % (2 * 3), "this text needs no padding: a forward pass has 3 blocks on each of two processes"
    losses = [run_artifacts.metrics(run)["final_val_loss"] for run in (one, run_of(two))]
    assert losses[1] == pytest.approx(losses[0], abs=1e-5)


def test_a_run_of_two_processes_is_resumed_with_one(two, run_cli, tiny, tmp_path: Path, caplog):
    caplog.set_level(logging.INFO)
    run = tmp_path / "run"
    shutil.copytree(run_of(two), run)
    outcome = run_cli("train", "resume=run", "trainer.devices=1", "trainer.max_steps=4")
    assert outcome.code == 0, outcome.err
    log = (run / "train.log").read_text()
    assert "instead of 2" in log
    assert run_cli("train", *tiny, *PLAIN, "trainer.max_steps=4", "hydra.run.dir=one").code == 0
    assert_same_weights(run, tmp_path / "one", tolerance=1e-4)
    assert [row["step"] for row in run_artifacts.history(run)] == ["1", "2", "3", "4"]
    assert (run_artifacts.metrics(run)["steps"], run_artifacts.metrics(run)["devices"]) == (4, 1)


@pytest.mark.slow
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_each_process_samples_its_own_dropout_mask(run_cli, tiny, tmp_path: Path, dropout):
    """The training split contains a single block, so both processes see the same data and only dropout differs."""
    text = tmp_path / "short.txt"
    text.write_text("O what a night, men")  # 17 characters to train on
    overrides = [*PLAIN, f"data.path={text}", f"model.dropout={dropout}", "trainer.max_steps=1"]
    two = process(tmp_path, "train", *tiny, *overrides, "data.batch_size=2", "trainer.devices=2", "hydra.run.dir=two")
    assert two.code == 0, two.err
    one = run_cli("train", *tiny, *overrides, "data.batch_size=1", "hydra.run.dir=one")
    assert one.code == 0, one.err
    one, two = (float(run_artifacts.history(tmp_path / name)[0]["train_loss"]) for name in ("one", "two"))
    assert (one == pytest.approx(two, abs=1e-6)) == (dropout == 0)


@pytest.mark.slow
def test_two_processes_that_diverge_print_one_message(tiny, tmp_path: Path):
    overrides = ["optimizer=sgd", "optimizer.lr=1e12", "trainer.gradient_clip_val=null", "trainer.devices=2"]
    outcome = process(tmp_path, "train", *tiny, *overrides, "hydra.run.dir=run")
    assert outcome.code == 1
    assert outcome.err.count("train.py: ") == 1
    assert "Traceback" not in outcome.err
    assert run_artifacts.status(tmp_path / "run")["state"] == "diverged"
