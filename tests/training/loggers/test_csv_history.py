"""history.csv: one row a step, and what a resumed run will write again is dropped."""

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


def test_what_is_logged_at_one_step_shares_a_row(history, path):
    history.append(5, {"train_loss": 3.0, "lr": 0.1, "grad_norm": 1.5, "tokens_per_second": 7.0})
    history.append(5, {"val_loss": 3.25, "val_bpc": 4.5, "val_perplexity": 25.8})
    history.append(10, {"train_loss": 2.0, "lr": 0.2})
    history.save()
    assert path.read_text().splitlines() == [HEADER, "5,3.0,3.25,0.1,1.5,7.0,4.5", "10,2.0,,0.2,,,"]


def test_other_figures_leave_no_row(history, path):
    history.append(5, {"epoch": 3.0})
    history.save()
    assert not path.exists()


def test_a_step_is_on_the_disk_once_the_next_is_logged(history, path):
    history.append(5, {"train_loss": 3.0})
    history.append(10, {"train_loss": 2.0})
    assert steps(path) == ["5"]


def test_save_puts_everything_on_the_disk_once(history, path):
    history.append(5, {"train_loss": 3.0})
    history.save()
    history.save()
    assert steps(path) == ["5"]


def test_numbers_survive_to_the_last_bit(history, path):
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
    before = path.read_text().splitlines()
    again = CSVHistory(path)
    again.rewind(10)
    assert path.read_text().splitlines() == before[:4]
    again.append(15, {"train_loss": 1 / 15})
    again.save()
    assert path.read_text().splitlines() == before[:5]


@pytest.mark.parametrize("torn", ["1", "15", "5,2.", "10,2.5,", "10,2.5,,0.1,0.", "x,2.5,,0.1,0.2,3.0,", ","])
def test_rewind_drops_a_row_that_a_killed_run_left_torn(history, path, torn):
    whole = f"{HEADER}\n1,3.0,,0.1,0.5,100.0,\n5,2.5,2.6,0.1,0.5,100.0,3.8\n"
    path.write_text(whole + torn)
    history.rewind(10)
    assert path.read_text() == whole


@pytest.mark.parametrize("content", ["", HEADER[:9], HEADER])
def test_rewind_mends_a_header_that_a_killed_run_left_torn(history, path, content):
    path.write_text(content)
    history.rewind(10)
    history.append(11, {"train_loss": 3.0})
    history.save()
    assert path.read_text() == f"{HEADER}\n11,3.0,,,,,\n"


def test_rewind_of_a_run_that_wrote_nothing_makes_no_file(history, path):
    history.rewind(0)
    assert not path.exists()


def test_the_figure_that_checkpoints_are_compared_by_has_a_column(tmp_path):
    history = CSVHistory(tmp_path / "history.csv", "val_accuracy")
    history.append(5, {"val_loss": 3.0, "val_accuracy": 0.25, "val_f1": 0.5})
    history.save()
    assert (tmp_path / "history.csv").read_text() == f"{HEADER},val_accuracy\n5,,3.0,,,,,0.25\n"


def test_rewind_gives_the_file_of_an_earlier_version_the_columns_of_this_one(history, path):
    path.write_text("step,train_loss,val_loss,lr,grad_norm,tokens_per_second\n5,3.0,3.1,0.1,0.5,7.0\n")
    history.rewind(10)
    history.append(10, {"val_loss": 2.5, "val_bpc": 3.6})
    history.save()
    assert path.read_text() == f"{HEADER}\n5,3.0,3.1,0.1,0.5,7.0,\n10,,2.5,,,,3.6\n"
