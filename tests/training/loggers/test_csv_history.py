"""history.csv: one row per step, and the removal of rows that a resumed run writes again."""

import csv
from pathlib import Path

import pytest

from chargpt.training.loggers.csv_history import CSVHistory

HEADER = "step,train_loss,val_loss,lr,grad_norm,tokens_per_second,val_bpc"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "history.csv"


@pytest.fixture
def history(tmp_path: Path) -> CSVHistory:
    return CSVHistory(tmp_path / "history.csv")


def steps(path: Path) -> list[str]:
    with path.open(newline="") as file:
        return [row["step"] for row in csv.DictReader(file)]


def test_metrics_of_one_step_share_a_row(history, path):
    history.append(5, {"train_loss": 3.0, "lr": 0.1, "grad_norm": 1.5, "tokens_per_second": 7.0})
    history.append(5, {"val_loss": 3.25, "val_bpc": 4.5, "val_perplexity": 25.8})
    history.append(10, {"train_loss": 2.0, "lr": 0.2})
    history.save()
    assert path.read_text().splitlines() == [HEADER, "5,3.0,3.25,0.1,1.5,7.0,4.5", "10,2.0,,0.2,,,"]


def test_metrics_without_a_column_write_no_row(history, path):
    history.append(5, {"epoch": 3.0})
    history.save()
    assert not path.exists()


def test_a_row_is_written_when_the_next_step_is_logged(history, path):
    history.append(5, {"train_loss": 3.0})
    history.append(10, {"train_loss": 2.0})
    assert steps(path) == ["5"]


def test_save_writes_each_row_once(history, path):
    history.append(5, {"train_loss": 3.0})
    history.save()
    history.save()
    assert steps(path) == ["5"]


def test_numbers_are_written_with_all_digits(history, path):
    values = {"train_loss": 3.3000000715255737, "lr": 1 / 3, "grad_norm": 5e-324}
    history.append(1, values)
    history.save()
    with path.open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert [float(row[key]) for key in ("train_loss", "lr", "grad_norm")] == list(values.values())


def test_rewind_drops_the_steps_after_the_checkpoint(history, path):
    for step in (1, 5, 10, 15, 20):
        history.append(step, {"train_loss": 1 / step})
    history.save()
    lines = path.read_text().splitlines()
    resumed = CSVHistory(path)
    resumed.rewind(10)
    assert path.read_text().splitlines() == lines[:4]
    resumed.append(15, {"train_loss": 1 / 15})
    resumed.save()
    assert path.read_text().splitlines() == lines[:5]


@pytest.mark.parametrize("incomplete", ["1", "15", "5,2.", "10,2.5,", "10,2.5,,0.1,0.", "x,2.5,,0.1,0.2,3.0,", ","])
def test_rewind_drops_an_incomplete_row_of_a_killed_run(history, path, incomplete):
    complete = f"{HEADER}\n1,3.0,,0.1,0.5,100.0,\n5,2.5,2.6,0.1,0.5,100.0,3.8\n"
    path.write_text(complete + incomplete)
    history.rewind(10)
    assert path.read_text() == complete


@pytest.mark.parametrize("content", ["", HEADER[:9], HEADER])
def test_rewind_repairs_an_incomplete_header_of_a_killed_run(history, path, content):
    path.write_text(content)
    history.rewind(10)
    history.append(11, {"train_loss": 3.0})
    history.save()
    assert path.read_text() == f"{HEADER}\n11,3.0,,,,,\n"


def test_rewind_without_a_file_creates_none(history, path):
    history.rewind(0)
    assert not path.exists()


def test_the_monitor_has_a_column(tmp_path):
    history = CSVHistory(tmp_path / "history.csv", "val_accuracy")
    history.append(5, {"val_loss": 3.0, "val_accuracy": 0.25, "val_f1": 0.5})
    history.save()
    assert (tmp_path / "history.csv").read_text() == f"{HEADER},val_accuracy\n5,,3.0,,,,,0.25\n"


def test_rewind_adds_the_columns_that_an_earlier_version_lacks(history, path):
    path.write_text("step,train_loss,val_loss,lr,grad_norm,tokens_per_second\n5,3.0,3.1,0.1,0.5,7.0\n")
    history.rewind(10)
    history.append(10, {"val_loss": 2.5, "val_bpc": 3.6})
    history.save()
    assert path.read_text() == f"{HEADER}\n5,3.0,3.1,0.1,0.5,7.0,\n10,,2.5,,,,3.6\n"
