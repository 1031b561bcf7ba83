"""Reading and writing rows of measurements as CSV files."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from chargpt.utils.atomic_write import atomic_write_text


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Writes one or more rows. The first row defines the columns; missing values of other rows are left empty."""
    content = io.StringIO()
    writer = csv.DictWriter(content, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    atomic_write_text(path, content.getvalue())


def read_rows(path: Path) -> list[dict[str, str]]:
    """Reads the rows of a CSV file; an empty list if the file does not exist."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return [*csv.DictReader(file)]
