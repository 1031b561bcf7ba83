"""Any run read back: its state, its figures, and a word for all that is damaged."""

import json

import pytest

from chargpt.errors import UserError
from chargpt.runs.record import is_run, read_finished, read_run
from chargpt.runs.score import Monitor
from tests.training import run_artifacts


def test_a_real_run_says_all(finished):
    run = read_run(finished)
    metrics = json.loads((finished / "metrics.json").read_text())
    assert (run.state, run.reason, run.finished) == ("finished", "", True)
    assert run.metrics == metrics
    assert run.choices["model"] == "gpt_nano"
    assert {"model.n_layer", "trainer.max_steps", "data"} <= run.typed
    assert (run.lasts["val_loss"], run.seed) == ((20, metrics["final_val_loss"]), 1337)
    tokens = 20 * 4 * 16
    assert run.training_flops == tokens * metrics["flops_per_token"]
    assert metrics["tokens_per_second"] * metrics["train_seconds"] == pytest.approx(tokens)


def test_training_flops_count_accumulated_passes(run):
    once = read_run(run("once", loss=2.0)).training_flops
    assert once == 30_000 * 20 * 4 * 16
    assert read_run(run("thrice", "trainer.accumulate_grad_batches=3", loss=2.0)).training_flops == 3 * once


def test_an_unfinished_run_says_how_far_it_came(run):
    history = [(1, None), (5, 3.0), (10, 2.5), (11, None)]
    read = read_run(run("a", state="diverged", reason="the loss\nis nan", history=history))
    assert (read.state, read.reason, read.finished) == ("diverged", "the loss is nan", False)
    assert read.lasts == {"val_loss": (10, 2.5)}
    assert read_run(run("b", state="waiting")).lasts == {}


def test_a_loss_that_is_no_number_is_none(run):
    read = read_run(run("a", state="failed", history=[(5, 3.0), (10, float("nan"))]))
    assert read.lasts["val_loss"] == (5, 3.0)
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
    assert name in read.reason or name == "status.json"  # metrics.json says that it is finished
    assert read.finished == (name != "metrics.json")
    assert read.lasts["val_loss"] == (5, 3.0)


def test_half_a_line_of_the_history_is_not_read(run):
    path = run("a", state="failed", history=[(5, 3.0)])
    with (path / "history.csv").open("a") as file:
        file.write("10,2.9,2.")
    assert read_run(path).lasts["val_loss"] == (5, 3.0)
    (path / "history.csv").write_bytes(b"step,val_loss\n\0,\xff\n5,4.0\n")
    assert read_run(path).lasts.get("val_loss") in ((5, 4.0), None)


def test_what_is_missing_is_named(run):
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


def test_a_finished_run_without_metrics_is_told(run):
    path = run("a", loss=2.0)
    (path / "metrics.json").unlink()
    read = read_run(path)
    assert (read.finished, read.reason) == (False, "metrics.json is missing")


def test_a_run_says_its_monitor_and_its_score_and_an_older_one_means_validation_loss(run, accurate):
    more = Monitor("accuracy", "max")
    read = read_run(accurate("a", 0.5, loss=2.0))
    assert (read.monitor, read.score) == (more, 0.5)
    died = read_run(accurate("b", None, history=[(5, 0.25), (10, 0.125)]))
    assert (died.monitor, died.score, died.lasts) == (more, None, {"accuracy": (10, 0.125)})
    old = read_run(run("c", loss=2.0))
    assert (old.monitor, old.score) == (Monitor(), 2.0)


def test_a_mode_that_is_none_and_a_score_that_is_no_number_are_named(run, accurate):
    read = read_run(run("a", loss=2.0, monitor="accuracy", mode="up", score=0.5))
    assert (read.monitor, read.finished, read.reason) == (None, False, "mode=up: it is one of min, max")
    read = read_run(accurate("b", float("nan")))
    assert (read.finished, read.reason) == (False, "metrics.json has no score")


def test_it_says_what_the_run_says_of_itself(finished, tiny):
    run = read_finished(finished)
    assert run.metrics == json.loads((finished / "metrics.json").read_text())
    assert run.choices["model"] == "gpt_nano"
    assert run.choices["data"] == "text_file"
    assert [word.replace("'", "") for word in run.overrides] == tiny
    assert run.sample == (finished / "sample.txt").read_text()


def test_a_curve_has_the_points_of_its_column_and_no_gaps(finished):
    run = read_finished(finished)
    steps, losses = run.curve("val_loss")
    assert steps == [10, 20]
    assert losses == [float(row["val_loss"]) for row in run_artifacts.history(finished) if row["val_loss"]]
    assert run.curve("train_loss")[0] == [1, 5, 10, 15, 20]


def test_what_is_no_finished_run_is_told(tmp_path):
    with pytest.raises(UserError, match=r"not a finished run.*metrics\.json"):
        read_finished(tmp_path)


def test_it_says_its_monitor_and_its_score(finished, accurate):
    run = read_finished(finished)
    assert (run.monitor, run.score) == (Monitor(), run.metrics["val_loss"])
    run = read_finished(accurate("a", 0.5))
    assert (run.monitor, run.score) == (Monitor("accuracy", "max"), 0.5)
