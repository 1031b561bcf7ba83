"""Writes history.csv: the training curves, one row per logged step."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger

from chargpt.utils.atomic_write import atomic_write_text

COLUMNS = ("step", "train_loss", "val_loss", "lr", "grad_norm", "tokens_per_second", "val_bpc")


class CSVHistory:
    """Appends rows to `history.csv`; all metrics of one step are in one row.

    A row is written to disk when the next step is logged, and by `save`, which is called before each checkpoint.
    The file therefore contains every step up to a checkpoint, and `rewind` drops the later ones.

    Args:
        path: path of the file.
        monitor: the metric by which checkpoints are compared; it also has a column.
    """

    def __init__(self, path: Path, monitor: str = "val_loss"):
        self._path = path
        self._columns = list(dict.fromkeys([*COLUMNS, monitor]))
        self._row: dict[str, Any] = {}

    def append(self, step: int, metrics: Mapping[str, float]) -> None:
        """Adds the metrics for which there is a column to the row of a step."""
        values = {name: value for name, value in metrics.items() if name in self._columns}
        if not values:
            return
        if self._row.get("step") != step:
            self.save()
            self._row = {"step": step}
        self._row |= values

    def save(self, before: int | None = None) -> None:
        """Writes the last row, unless it is not complete: unless its step is `before` or later."""
        if not self._row or (before is not None and self._row["step"] >= before):
            return
        is_new = not self._path.exists()
        with self._path.open("a", newline="") as file:
            writer = csv.DictWriter(file, self._columns, lineterminator="\n")
            if is_new:
                writer.writeheader()
            writer.writerow(self._row)
        self._row = {}

    def rewind(self, step: int) -> None:
        """Drops the rows after `step`; a resumed run writes them again."""
        if self._path.exists():
            _rewind(self._path, step, self._columns)


def rewind_earlier_versions(logger: CSVLogger, folder: Path, step: int) -> None:
    """Drops the rows after `step` that earlier parts of a resumed run wrote with Lightning's `CSVLogger`.

    Args:
        logger: that of this part, which writes to another `version_N`.
        folder: the run directory; files elsewhere may belong to other runs.
    """
    root = Path(logger.root_dir)
    if root.absolute().is_relative_to(folder.absolute()):
        for file in root.glob("version_*/metrics.csv"):
            if file.parent != Path(logger.log_dir):
                _rewind(file, step)


def _rewind(path: Path, step: int, columns: Sequence[str] | None = None) -> None:
    with path.open(newline="", errors="replace") as file:
        reader = csv.DictReader(file)
        rows = [row for row in reader if _is_complete(row) and int(row["step"]) <= step]
        columns = columns or reader.fieldnames or ["step"]
    kept = io.StringIO()
    writer = csv.DictWriter(kept, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    atomic_write_text(path, kept.getvalue())


def _is_complete(row: dict[str, Any]) -> bool:
    # A run that was killed during a write can leave an incomplete line.
    return None not in row.values() and (row["step"] or "").isdigit()
