"""Measured rows on the disk: read back as they were, whole or not at all."""

import csv

import pytest

from chargpt.utils.csv_io import read_rows, write_rows


def test_rows_are_read_back_and_what_one_lacks_is_empty(tmp_path):
    write_rows(tmp_path / "rows.csv", [{"who": "a, b", "loss": 1.5, "steps": 3}, {"who": "c", "loss": 2.5}])
    with (tmp_path / "rows.csv").open(newline="") as file:
        assert list(csv.DictReader(file)) == [
            {"who": "a, b", "loss": "1.5", "steps": "3"},
            {"who": "c", "loss": "2.5", "steps": ""},
        ]


def test_a_column_that_the_first_row_has_not_is_refused_and_the_file_stays(tmp_path):
    write_rows(tmp_path / "rows.csv", [{"loss": 1.5}])
    with pytest.raises(ValueError, match="seconds"):
        write_rows(tmp_path / "rows.csv", [{"loss": 1.5}, {"loss": 1.4, "seconds": 3}])
    assert (tmp_path / "rows.csv").read_text() == "loss\n1.5\n"
    assert [file.name for file in tmp_path.iterdir()] == ["rows.csv"]


def test_rows_that_were_never_written_are_none_and_those_that_were_come_back_as_text(tmp_path):
    assert read_rows(tmp_path / "rows.csv") == []
    write_rows(tmp_path / "rows.csv", [{"who": "a, b", "loss": 1.5}])
    assert read_rows(tmp_path / "rows.csv") == [{"who": "a, b", "loss": "1.5"}]
