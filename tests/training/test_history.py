"""history.csv: one row a step, and what a resumed run will write again is dropped."""

import csv
from pathlib import Path

import pytest

from chargpt.training.history import History

HEADER = "step,train_loss,val_loss,lr,grad_norm,tokens_per_second"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "history.csv"


@pytest.fixture
def history(tmp_path: Path) -> History:
    return History(str(tmp_path))


def steps(path: Path) -> list[str]:
    with path.open(newline="") as file:
        return [row["step"] for row in csv.DictReader(file)]


def test_what_is_logged_at_one_step_shares_a_row(history, path):
    history.log_metrics({"train/loss": 3.0, "lr": 0.1, "grad_norm": 1.5, "tokens_per_second": 7.0}, step=5)
    history.log_metrics({"val/loss": 3.25, "val/perplexity": 25.8}, step=5)
    history.log_metrics({"train/loss": 2.0, "lr": 0.2}, step=10)
    history.finalize("success")
    assert path.read_text().splitlines() == [HEADER, "5,3.0,3.25,0.1,1.5,7.0", "10,2.0,,0.2,,"]


def test_other_figures_leave_no_row(history, path):
    history.log_metrics({"epoch": 3.0}, step=5)
    history.finalize("success")
    assert not path.exists()


def test_a_step_is_on_the_disk_once_the_next_is_logged(history, path):
    history.log_metrics({"train/loss": 3.0}, step=5)
    history.log_metrics({"train/loss": 2.0}, step=10)
    assert steps(path) == ["5"]


def test_save_puts_everything_on_the_disk_once(history, path):
    history.log_metrics({"train/loss": 3.0}, step=5)
    history.save()
    history.save()
    assert steps(path) == ["5"]


def test_numbers_survive_to_the_last_bit(history, path):
    values = {"train/loss": 3.3000000715255737, "lr": 1 / 3, "grad_norm": 5e-324}
    history.log_metrics(values, step=1)
    history.finalize("success")
    with path.open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert [float(row[key]) for key in ("train_loss", "lr", "grad_norm")] == list(values.values())


def test_rewind_drops_the_steps_after_the_checkpoint(history, path):
    for step in (1, 5, 10, 15, 20):
        history.log_metrics({"train/loss": 1 / step}, step=step)
    history.finalize("success")
    before = path.read_text().splitlines()
    again = History(str(path.parent))
    again.rewind(10)
    assert path.read_text().splitlines() == before[:4]
    again.log_metrics({"train/loss": 1 / 15}, step=15)
    again.finalize("success")
    assert path.read_text().splitlines() == before[:5]


@pytest.mark.parametrize("torn", ["1", "15", "5,2.", "10,2.5,", "10,2.5,,0.1,0.", "x,2.5,,0.1,0.2,3.0", ","])
def test_rewind_drops_a_row_that_a_killed_run_left_torn(history, path, torn):
    whole = f"{HEADER}\n1,3.0,,0.1,0.5,100.0\n5,2.5,2.6,0.1,0.5,100.0\n"
    path.write_text(whole + torn)
    history.rewind(10)
    assert path.read_text() == whole


@pytest.mark.parametrize("content", ["", HEADER[:9], HEADER])
def test_rewind_mends_a_header_that_a_killed_run_left_torn(history, path, content):
    path.write_text(content)
    history.rewind(10)
    history.log_metrics({"train/loss": 3.0}, step=11)
    history.finalize("success")
    assert path.read_text() == f"{HEADER}\n11,3.0,,,,\n"


def test_rewind_of_a_run_that_wrote_nothing_makes_no_file(history, path):
    history.rewind(0)
    assert not path.exists()
