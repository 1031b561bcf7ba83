"""sweep.csv: the comparison for machines, one row a run, best first; runs of another monitor come after."""

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from chargpt.runs.record import RunRecord
from chargpt.sweeps.formatting import short_path, shown_value
from chargpt.sweeps.ranking import Ranking
from chargpt.sweeps.swept_params import ABSENT
from chargpt.utils.atomic_write import atomic_write_text


def write_csv(rankings: Sequence[Ranking], path: Path) -> None:
    """Writes where each run is (from the file's own folder), how it stands, what varies, and all its metrics."""
    runs = [(run, row) for ranking in rankings for row in ranking.rows for run in row.runs]
    keys = [*dict.fromkeys([*(key for ranking in rankings for key in ranking.keys), "seed"])]
    metrics = dict.fromkeys(name for run, _ in runs for name in run.metrics if name not in keys)
    lasts = dict.fromkeys(f"last_{ranking.monitor.name}" for ranking in rankings)
    header = ["run", "state", "reason", *keys, *metrics, "training_flops", "last_step", *lasts]
    content = io.StringIO()
    writer = csv.writer(content, lineterminator="\n")
    writer.writerow(header)
    for run, row in runs:
        settings = [run.seed if key == "seed" else row.values.get(key, ABSENT) for key in keys]
        known = _compared_by(run) | run.metrics
        figures = [known.get(name, ABSENT) for name in metrics]
        step, score = run.lasts.get(row.monitor.name, (ABSENT, ABSENT))
        ends = [ABSENT if run.training_flops is None else run.training_flops, step]
        ends += [score if name == f"last_{row.monitor.name}" else ABSENT for name in lasts]
        writer.writerow(
            map(_cell, [short_path(run.path, path.parent), run.state, run.reason, *settings, *figures, *ends])
        )
    atomic_write_text(path, content.getvalue().encode("utf-8", "replace").decode())


def _compared_by(run: RunRecord) -> dict[str, Any]:
    """What metrics.json says of the monitor since 0.3, for a run that has no such file or an older one."""
    known = {"monitor": run.monitor.name, "mode": run.monitor.mode} if run.monitor else {}
    return known | ({"score": run.score} if run.score is not None else {})


def _cell(value: Any) -> str:
    return json.dumps(value) if isinstance(value, dict) else shown_value(value)
