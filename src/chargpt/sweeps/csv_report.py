"""sweep.csv: the comparison as a file, one row per run, best first, grouped by monitor."""

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from chargpt.runs.record import RunRecord
from chargpt.sweeps.formatting import format_value, short_path
from chargpt.sweeps.ranking import Ranking
from chargpt.sweeps.swept_params import ABSENT
from chargpt.utils.atomic_write import atomic_write_text


def write_csv(rankings: Sequence[Ranking], path: Path) -> None:
    """Writes the path (relative to the file's folder), state, swept settings and all metrics of each run."""
    runs = [(run, row) for ranking in rankings for row in ranking.rows for run in row.runs]
    keys = [*dict.fromkeys([*(key for ranking in rankings for key in ranking.keys), "seed"])]
    metrics = dict.fromkeys(name for run, _ in runs for name in run.metrics if name not in keys)
    last_columns = dict.fromkeys(f"last_{ranking.monitor.name}" for ranking in rankings)
    header = ["run", "state", "reason", *keys, *metrics, "training_flops", "last_step", *last_columns]
    content = io.StringIO()
    writer = csv.writer(content, lineterminator="\n")
    writer.writerow(header)
    for run, row in runs:
        settings = [run.seed if key == "seed" else row.values.get(key, ABSENT) for key in keys]
        all_metrics = _monitor_metrics(run) | run.metrics
        values = [all_metrics.get(name, ABSENT) for name in metrics]
        step, score = run.last_values.get(row.monitor.name, (ABSENT, ABSENT))
        values += [ABSENT if run.training_flops is None else run.training_flops, step]
        values += [score if name == f"last_{row.monitor.name}" else ABSENT for name in last_columns]
        writer.writerow(map(_cell, [short_path(run.path, path.parent), run.state, run.reason, *settings, *values]))
    atomic_write_text(path, content.getvalue().encode("utf-8", "replace").decode())


def _monitor_metrics(run: RunRecord) -> dict[str, Any]:
    """The monitor's entries of metrics.json, for runs without this file and for runs from before 0.3."""
    monitor = {"monitor": run.monitor.name, "mode": run.monitor.mode} if run.monitor else {}
    return monitor | ({"score": run.score} if run.score is not None else {})


def _cell(value: Any) -> str:
    return json.dumps(value) if isinstance(value, dict) else format_value(value)
