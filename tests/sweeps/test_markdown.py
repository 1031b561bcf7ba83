"""Tables in a README: their format, and that the text around them is kept."""

import statistics

import pytest

from chargpt.errors import UserError
from chargpt.sweeps.markdown import mean_and_spread, put, table


def test_a_table_has_a_header_a_rule_and_one_line_per_row():
    rows = [{"run": "a", "loss": "1.5"}, {"run": "b", "loss": "1.25"}]
    assert table(rows) == "| run | loss |\n| --- | --- |\n| a | 1.5 |\n| b | 1.25 |\n"


def test_the_spread_is_the_standard_deviation_over_seeds():
    values = [1.5, 1.75, 1.85]
    assert mean_and_spread(values) == f"{statistics.mean(values):.3f} ± {statistics.stdev(values):.3f}"
    assert mean_and_spread([1.5], digits=2) == "1.50"


def test_only_the_text_between_the_markers_is_replaced(tmp_path):
    file = tmp_path / "README.md"
    file.write_text("# A\n<!-- one -->\nold\n<!-- /one -->\nkept\n<!-- two -->\nold\n<!-- /two -->\n")
    for content in (r"a \1 table" + "\n", "new\n"):
        put(file, "one", content)
        expected = f"# A\n<!-- one -->\n{content}<!-- /one -->\nkept\n<!-- two -->\nold\n<!-- /two -->\n"
        assert file.read_text() == expected


def test_a_file_without_markers_is_a_user_error_and_not_changed(tmp_path):
    file = tmp_path / "README.md"
    file.write_text("# A\n")
    with pytest.raises(UserError, match="<!-- one -->"):
        put(file, "one", "new\n")
    assert file.read_text() == "# A\n"
