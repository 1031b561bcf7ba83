"""Plots the scores over the training steps, for runs that differ in no key or have not finished."""

import contextlib
import csv
from collections.abc import Sequence

from matplotlib.axes import Axes

from chargpt.analysis.fonts import escape_mathtext
from chargpt.runs.record import RunRecord, read_curves
from chargpt.runs.score import Monitor
from chargpt.sweeps.formatting import short_path
from chargpt.sweeps.plots.axis import score_label

MAX_LEGEND_ENTRIES = 8


def plot_curves(axes: Axes, runs: Sequence[RunRecord], monitor: Monitor) -> None:
    """Draws one curve per run, up to its last validation."""
    drawn = 0
    for run in runs:
        with contextlib.suppress(OSError, ValueError, csv.Error):
            steps, scores = read_curves(run.path, [monitor.name])[monitor.name]
            if steps:
                label = escape_mathtext(f"{short_path(run.path, run.path.parent)[-40:]} ({run.state})")
                axes.plot(steps, scores, marker="o", markersize=4, label=label)
                drawn += 1
    axes.set_xlabel("optimizer steps")
    axes.set_ylabel(score_label(monitor))
    axes.grid(alpha=0.3)
    if 0 < drawn <= MAX_LEGEND_ENTRIES:
        axes.legend(fontsize=8)
