"""Reading runs: their state and metrics, and the names of all damaged files."""

import json

import pytest

from chargpt.errors import UserError
from chargpt.runs.record import is_run, read_finished, read_run
from chargpt.runs.score import Monitor
from tests.training import run_artifacts


def test_a_trained_run_is_read_completely(finished):
    run = read_run(finished)
    metrics = json.loads((finished / "metrics.json").read_text())
    assert (run.state, run.reason, run.finished) == ("finished", "", True)
    assert run.metrics == metrics
    assert run.choices["model"] == "gpt_nano"
    assert {"model.n_layer", "trainer.max_steps", "data"} <= run.overridden
    assert (run.last_values["val_loss"], run.seed) == ((20, metrics["final_val_loss"]), 1337)
    tokens = 20 * 4 * 16
    assert run.training_flops == tokens * metrics["flops_per_token"]
    assert metrics["tokens_per_second"] * metrics["train_seconds"] == pytest.approx(tokens)


def test_training_flops_include_all_micro_batches(run):
    single = read_run(run("single", loss=2.0)).training_flops
    assert single == 30_000 * 20 * 4 * 16
    assert read_run(run("triple", "trainer.accumulate_grad_batches=3", loss=2.0)).training_flops == 3 * single


def test_an_unfinished_run_is_read_with_its_last_value(run):
    history = [(1, None), (5, 3.0), (10, 2.5), (11, None)]
    read = read_run(run("a", state="diverged", reason="the loss\nis nan", history=history))
    assert (read.state, read.reason, read.finished) == ("diverged", "the loss is nan", False)
    assert read.last_values == {"val_loss": (10, 2.5)}
    assert read_run(run("b", state="waiting")).last_values == {}


def test_a_loss_that_is_nan_is_skipped(run):
    read = read_run(run("a", state="failed", history=[(5, 3.0), (10, float("nan"))]))
    assert read.last_values["val_loss"] == (5, 3.0)
    nan = read_run(run("b", loss=float("nan")))
    assert not nan.finished
    assert nan.reason == "metrics.json has no val_loss"


BYTES = {"half": b'{"val_loss": 2.', "another": b"[1, 2]\n", "binary": b"\xff\xfe\0\x80", "nothing": b""}


@pytest.mark.parametrize("content", BYTES.values(), ids=BYTES.keys())
@pytest.mark.parametrize("name", ["metrics.json", "status.json", ".hydra/config.yaml", ".hydra/hydra.yaml"])
def test_a_damaged_file_is_named(run, name, content):
    path = run("a", loss=2.0, history=[(5, 3.0)])
    (path / name).write_bytes(content)
    read = read_run(path)
    assert name in read.reason or name == "status.json"  # metrics.json marks it as finished
    assert read.finished == (name != "metrics.json")
    assert read.last_values["val_loss"] == (5, 3.0)


def test_an_incomplete_line_of_the_history_is_skipped(run):
    path = run("a", state="failed", history=[(5, 3.0)])
    with (path / "history.csv").open("a") as file:
        file.write("10,2.9,2.")
    assert read_run(path).last_values["val_loss"] == (5, 3.0)
    (path / "history.csv").write_bytes(b"step,val_loss\n\0,\xff\n5,4.0\n")
    assert read_run(path).last_values.get("val_loss") in ((5, 4.0), None)


def test_a_missing_file_is_named(run):
    path = run("a", loss=2.0)
    (path / ".hydra" / "config.yaml").unlink()
    (path / "status.json").unlink()
    read = read_run(path)
    assert is_run(path)
    assert (read.state, read.reason) == (
        "finished",
        "status.json is missing or damaged; .hydra/config.yaml is missing",
    )
    (path / "metrics.json").unlink()
    assert not is_run(path)


def test_a_finished_run_without_metrics_is_reported(run):
    path = run("a", loss=2.0)
    (path / "metrics.json").unlink()
    read = read_run(path)
    assert (read.finished, read.reason) == (False, "metrics.json is missing")


def test_the_monitor_and_the_score_are_read_and_default_to_the_validation_loss(run, accurate):
    accuracy = Monitor("accuracy", "max")
    read = read_run(accurate("a", 0.5, loss=2.0))
    assert (read.monitor, read.score) == (accuracy, 0.5)
    failed = read_run(accurate("b", None, history=[(5, 0.25), (10, 0.125)]))
    assert (failed.monitor, failed.score, failed.last_values) == (accuracy, None, {"accuracy": (10, 0.125)})
    old = read_run(run("c", loss=2.0))
    assert (old.monitor, old.score) == (Monitor(), 2.0)


def test_an_invalid_mode_and_a_score_that_is_nan_are_reported(run, accurate):
    read = read_run(run("a", loss=2.0, monitor="accuracy", mode="up", score=0.5))
    assert (read.monitor, read.finished, read.reason) == (None, False, "mode=up: it must be one of min, max")
    read = read_run(accurate("b", float("nan")))
    assert (read.finished, read.reason) == (False, "metrics.json has no score")


def test_a_finished_run_has_metrics_choices_overrides_and_sample(finished, tiny):
    run = read_finished(finished)
    assert run.metrics == json.loads((finished / "metrics.json").read_text())
    assert run.choices["model"] == "gpt_nano"
    assert run.choices["data"] == "text_file"
    assert [override.replace("'", "") for override in run.overrides] == tiny
    assert run.sample == (finished / "sample.txt").read_text()


def test_a_curve_has_the_non_empty_points_of_its_column(finished):
    run = read_finished(finished)
    steps, losses = run.curve("val_loss")
    assert steps == [10, 20]
    assert losses == [float(row["val_loss"]) for row in run_artifacts.history(finished) if row["val_loss"]]
    assert run.curve("train_loss")[0] == [1, 5, 10, 15, 20]


def test_a_folder_that_is_not_a_finished_run_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match=r"not a finished run.*metrics\.json"):
        read_finished(tmp_path)


def test_a_finished_run_has_its_monitor_and_score(finished, accurate):
    run = read_finished(finished)
    assert (run.monitor, run.score) == (Monitor(), run.metrics["val_loss"])
    run = read_finished(accurate("a", 0.5))
    assert (run.monitor, run.score) == (Monitor("accuracy", "max"), 0.5)
