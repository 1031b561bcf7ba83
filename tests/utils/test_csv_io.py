"""Tests of reading and writing rows as CSV files."""

import csv

import pytest

from chargpt.utils.csv_io import read_rows, write_rows


def test_missing_values_are_written_as_empty(tmp_path):
    write_rows(tmp_path / "rows.csv", [{"who": "a, b", "loss": 1.5, "steps": 3}, {"who": "c", "loss": 2.5}])
    with (tmp_path / "rows.csv").open(newline="") as file:
        assert list(csv.DictReader(file)) == [
            {"who": "a, b", "loss": "1.5", "steps": "3"},
            {"who": "c", "loss": "2.5", "steps": ""},
        ]


def test_a_column_missing_in_the_first_row_is_an_error_and_the_file_is_unchanged(tmp_path):
    write_rows(tmp_path / "rows.csv", [{"loss": 1.5}])
    with pytest.raises(ValueError, match="seconds"):
        write_rows(tmp_path / "rows.csv", [{"loss": 1.5}, {"loss": 1.4, "seconds": 3}])
    assert (tmp_path / "rows.csv").read_text() == "loss\n1.5\n"
    assert [file.name for file in tmp_path.iterdir()] == ["rows.csv"]


def test_rows_are_read_as_text_and_a_missing_file_has_no_rows(tmp_path):
    assert read_rows(tmp_path / "rows.csv") == []
    write_rows(tmp_path / "rows.csv", [{"who": "a, b", "loss": 1.5}])
    assert read_rows(tmp_path / "rows.csv") == [{"who": "a, b", "loss": "1.5"}]
