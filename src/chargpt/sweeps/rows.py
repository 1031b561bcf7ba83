"""Measured rows as a CSV file, beside the table that a README shows of them."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from chargpt.whole import write_whole


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Writes at least one row; the first has all the columns, and what another lacks stays empty."""
    content = io.StringIO()
    writer = csv.DictWriter(content, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_whole(path, content.getvalue())
