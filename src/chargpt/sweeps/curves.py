"""Validation loss over the steps of training, where there is nothing better to compare runs by."""

import contextlib
import csv
from collections.abc import Sequence

from matplotlib.axes import Axes

from chargpt.sweeps.axis import LOSS, plain
from chargpt.sweeps.finished import read_curve
from chargpt.sweeps.recorded import RecordedRun
from chargpt.sweeps.wording import short_path

MOST_NAMES = 8  # curves that a legend can tell apart


def draw_curves(axes: Axes, runs: Sequence[RecordedRun]) -> None:
    """A curve a run, as far as it came."""
    drawn = 0
    for run in runs:
        with contextlib.suppress(OSError, ValueError, csv.Error):
            steps, losses = read_curve(run.path, "val_loss")
            if steps:
                label = plain(f"{short_path(run.path, run.path.parent)[-40:]} ({run.state})")
                axes.plot(steps, losses, marker="o", markersize=4, label=label)
                drawn += 1
    axes.set_xlabel("optimizer steps")
    axes.set_ylabel(LOSS)
    axes.grid(alpha=0.3)
    if 0 < drawn <= MOST_NAMES:
        axes.legend(fontsize=8)
