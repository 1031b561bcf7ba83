"""Measured rows as a CSV file, beside the table that a README shows of them."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from chargpt.utils.atomic_write import atomic_write_text


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Writes at least one row; the first has all the columns, and what another lacks stays empty."""
    content = io.StringIO()
    writer = csv.DictWriter(content, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    atomic_write_text(path, content.getvalue())


def read_rows(path: Path) -> list[dict[str, str]]:
    """What `write_rows` wrote; nothing, if there is no such file."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return [*csv.DictReader(file)]
