"""history.csv: the curves for machines, one row a logged step."""

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from chargpt.utils.atomic_write import atomic_write_text

COLUMNS = ("step", "train_loss", "val_loss", "lr", "grad_norm", "tokens_per_second", "val_bpc")


class CSVHistory:
    """Appends rows to `history.csv`; what is logged at one step shares a row.

    Rows reach the disk when the next step is logged, and by `save`, which comes before each checkpoint: so the
    file always holds all that a checkpoint has seen, and `rewind` drops what came after it.

    Args:
        path: of the file.
        monitor: the figure by which checkpoints are compared; it has a column too.
    """

    def __init__(self, path: Path, monitor: str = "val_loss"):
        self._path = path
        self._columns = list(dict.fromkeys([*COLUMNS, monitor]))
        self._row: dict[str, Any] = {}

    def append(self, step: int, figures: Mapping[str, float]) -> None:
        """Adds figures to the row of a step: those that have a column, by its name."""
        known = {name: value for name, value in figures.items() if name in self._columns}
        if not known:
            return
        if self._row.get("step") != step:
            self.save()
            self._row = {"step": step}
        self._row |= known

    def save(self) -> None:
        if not self._row:
            return
        new = not self._path.exists()
        with self._path.open("a", newline="") as file:
            writer = csv.DictWriter(file, self._columns, lineterminator="\n")
            if new:
                writer.writeheader()
            writer.writerow(self._row)
        self._row = {}

    def rewind(self, step: int) -> None:
        """Drops the rows after `step`, which a resumed run will write again."""
        if not self._path.exists():
            return
        with self._path.open(newline="", errors="replace") as file:
            rows = [row for row in csv.DictReader(file) if _complete_row(row) and int(row["step"]) <= step]
        kept = io.StringIO()
        writer = csv.DictWriter(kept, self._columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        atomic_write_text(self._path, kept.getvalue())


def _complete_row(row: dict[str, Any]) -> bool:
    # A run that was killed while it wrote can leave half a line.
    return None not in row.values() and (row["step"] or "").isdigit()
