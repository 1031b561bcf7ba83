"""sweep.csv: the comparison for machines, one row a run, best first."""

import csv
import io
import json
from pathlib import Path
from typing import Any

from chargpt.sweeps.ranking import Ranking
from chargpt.sweeps.varying import ABSENT
from chargpt.sweeps.wording import short_path, shown_value
from chargpt.whole import write_whole


def write_csv(ranking: Ranking, path: Path) -> None:
    """Writes where each run is (from the file's own folder), how it stands, what varies, and all its metrics."""
    runs = [(run, row.values) for row in ranking.rows for run in row.runs]
    keys = [*ranking.keys, *([] if "seed" in ranking.keys else ["seed"])]
    metrics = dict.fromkeys(name for run, _ in runs for name in run.metrics if name not in keys)
    header = ["run", "state", "reason", *keys, *metrics, "training_flops", "last_step", "last_val_loss"]
    content = io.StringIO()
    writer = csv.writer(content, lineterminator="\n")
    writer.writerow(header)
    for run, values in runs:
        settings = [run.seed if key == "seed" else values.get(key, ABSENT) for key in keys]
        figures = [run.metrics.get(name, ABSENT) for name in metrics]
        ends = [run.training_flops, run.last_step if run.last_val_loss is not None else None, run.last_val_loss]
        ends = [ABSENT if end is None else end for end in ends]
        row = [short_path(run.path, path.parent), run.state, run.reason, *settings, *figures, *ends]
        writer.writerow(map(_cell, row))
    write_whole(path, content.getvalue().encode("utf-8", "replace").decode())


def _cell(value: Any) -> str:
    return json.dumps(value) if isinstance(value, dict) else shown_value(value)
