"""A finished run read back: its figures, its words, its curves."""

import json

import pytest

from chargpt.errors import Mistake
from chargpt.runs.finished import read_run
from chargpt.runs.score import Monitor
from tests.training import reading


def test_it_says_what_the_run_says_of_itself(finished, tiny):
    run = read_run(finished)
    assert run.metrics == json.loads((finished / "metrics.json").read_text())
    assert run.choices["model"] == "gpt_nano"
    assert run.choices["data"] == "text_file"
    assert [word.replace("'", "") for word in run.overrides] == tiny
    assert run.sample == (finished / "sample.txt").read_text()


def test_a_curve_has_the_points_of_its_column_and_no_gaps(finished):
    run = read_run(finished)
    steps, losses = run.curve("val_loss")
    assert steps == [10, 20]
    assert losses == [float(row["val_loss"]) for row in reading.history(finished) if row["val_loss"]]
    assert run.curve("train_loss")[0] == [1, 5, 10, 15, 20]


def test_what_is_no_finished_run_is_told(tmp_path):
    with pytest.raises(Mistake, match=r"not a finished run.*metrics\.json"):
        read_run(tmp_path)


def test_it_says_its_monitor_and_its_score(finished, accurate):
    run = read_run(finished)
    assert (run.monitor, run.score) == (Monitor(), run.metrics["val_loss"])
    run = read_run(accurate("a", 0.5))
    assert (run.monitor, run.score) == (Monitor("accuracy", "max"), 0.5)
