"""history.csv: the curves for machines, one row a logged step."""

import csv
import io
import logging
from argparse import Namespace
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from chargpt.whole import write_whole

log = logging.getLogger(__name__)

COLUMNS = ("step", "train_loss", "val_loss", "lr", "grad_norm", "tokens_per_second")


class History(Logger):
    """A Lightning logger that appends to `history.csv`; what is logged at one step shares a row.

    Rows reach the disk when the next step is logged, and at `save`, which comes before each checkpoint: so the
    file always holds all that a checkpoint has seen, and `rewind` drops what came after it.
    """

    def __init__(self, directory: str):
        super().__init__()
        self._path = Path(directory) / "history.csv"
        self._row: dict[str, Any] = {}

    name = "history"
    version = ""

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """The config stands in .hydra/ and in every checkpoint."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        columns = {key.replace("/", "_"): value for key, value in metrics.items()}
        known = {key: value for key, value in columns.items() if key in COLUMNS}
        if not known:
            return
        if self._row.get("step") != step:
            self.save()
            self._row = {"step": step}
        self._row |= known

    @rank_zero_only
    def save(self) -> None:
        if not self._row:
            return
        new = not self._path.exists()
        with self._path.open("a", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            if new:
                writer.writeheader()
            writer.writerow(self._row)
        self._row = {}

    @rank_zero_only
    def finalize(self, status: str) -> None:
        self.save()

    @rank_zero_only
    def rewind(self, step: int) -> None:
        """Drops the rows after `step`, which a resumed run will write again."""
        if not self._path.exists():
            return
        with self._path.open(newline="", errors="replace") as file:
            rows = [row for row in csv.DictReader(file) if _whole(row) and int(row["step"]) <= step]
        kept = io.StringIO()
        writer = csv.DictWriter(kept, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_whole(self._path, kept.getvalue())


def _whole(row: dict[str, Any]) -> bool:
    # A run that was killed while it wrote can leave half a line.
    return None not in row.values() and (row["step"] or "").isdigit()
