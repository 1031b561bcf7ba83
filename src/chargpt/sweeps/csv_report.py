"""sweep.csv and compare.csv: the comparison as a file, one row per run, best first, grouped by monitor."""

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


def table_rows(rankings: Sequence[Ranking], folder: Path) -> list[dict[str, Any]]:
    """The path (relative to `folder`), state, swept settings and metrics of each run; `ABSENT` where it has none."""
    runs = [(run, row) for ranking in rankings for row in ranking.rows for run in row.runs]
    keys = [*dict.fromkeys([*(key for ranking in rankings for key in ranking.keys), "seed"])]
    metrics = dict.fromkeys(name for run, _ in runs for name in run.metrics if name not in keys)
    rows = []
    for run, row in runs:
        all_metrics = _monitor_metrics(run) | run.metrics
        cells: dict[str, Any] = {"run": short_path(run.path, folder), "state": run.state, "reason": run.reason}
        cells |= {key: run.seed if key == "seed" else row.values.get(key, ABSENT) for key in keys}
        cells |= {name: all_metrics.get(name, ABSENT) for name in metrics}
        cells["training_flops"] = ABSENT if run.training_flops is None else run.training_flops
        cells["last_step"], score = run.last_values.get(row.monitor.name, (ABSENT, ABSENT))
        cells |= dict.fromkeys((f"last_{ranking.monitor.name}" for ranking in rankings), ABSENT)
        rows.append(cells | {f"last_{row.monitor.name}": score})
    return rows


def write_csv(rows: Sequence[dict[str, Any]], path: Path) -> None:
    content = io.StringIO()
    writer = csv.writer(content, lineterminator="\n")
    writer.writerow(rows[0])
    for row in rows:
        writer.writerow(map(_cell, row.values()))
    atomic_write_text(path, content.getvalue().encode("utf-8", "replace").decode())


def _monitor_metrics(run: RunRecord) -> dict[str, Any]:
    """The monitor's entries of metrics.json, for runs without this file and for runs from before 0.3."""
    monitor = {"monitor": run.monitor.name, "mode": run.monitor.mode} if run.monitor else {}
    return monitor | ({"score": run.score} if run.score is not None else {})


def _cell(value: Any) -> str:
    return json.dumps(value) if isinstance(value, dict) else format_value(value)
