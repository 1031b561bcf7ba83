"""The heat map: the scores against two keys at once, the number in each cell, no cell where no run is."""

from itertools import combinations
from statistics import mean, stdev
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from chargpt.runs.score import Monitor
from chargpt.sweeps.formatting import short_names
from chargpt.sweeps.plots.axis import make_scale, score_label, tick_label
from chargpt.sweeps.swept_params import ABSENT, hashable

MAX_VALUES = 12  # values of a key that there is room for

Columns = dict[str, list[tuple[Any, float]]]  # key -> its value and the score of each run


def select_pair(columns: Columns) -> tuple[str, str] | None:
    """The two keys with the most values that still fit, of those that some run has both of."""
    counts = {key: len({hashable(v) for v, _ in points if v is not ABSENT}) for key, points in columns.items()}

    def meet(one: str, other: str) -> bool:
        points = zip(columns[one], columns[other], strict=True)
        return any(ABSENT not in (here, there) for (here, _), (there, _) in points)

    fitting = [key for key, count in counts.items() if 1 < count <= MAX_VALUES]
    pairs = [pair for pair in combinations(fitting, 2) if meet(*pair)]
    return max(pairs, key=lambda pair: counts[pair[0]] * counts[pair[1]], default=None)


def plot_heat_map(axes: Axes, pair: tuple[str, str], columns: Columns, monitor: Monitor) -> None:
    """Draws the mean of the runs of each cell, the best brightest, with its spread where only seeds differ."""
    keys, names = len(columns), short_names(columns)
    down, across = (make_scale(columns[key], monitor) for key in pair)
    cells: dict[tuple[int, int], list[float]] = {}
    for (one, score), (other, _) in zip(columns[pair[0]], columns[pair[1]], strict=True):
        if one is not ABSENT and other is not ABSENT:
            cells.setdefault((down.rank(one), across.rank(other)), []).append(score)
    scores = np.full((len(down.values), len(across.values)), np.nan)
    for place, found in cells.items():
        scores[place] = mean(found)
    colors = "viridis_r" if monitor.mode == "min" else "viridis"
    image = axes.imshow(scores, cmap=colors, aspect="auto", origin="lower")
    best, worst = sorted((np.nanmin(scores), np.nanmax(scores)), key=monitor.sort_key)
    for (row, column), found in cells.items():
        dark = abs(scores[row, column] - best) / max(abs(worst - best), 1e-12) > 0.5
        spread = f"\n± {stdev(found):.3f}" if len(found) > 1 and keys == 2 else ""
        text = f"{scores[row, column]:.3f}{spread}"
        size = 9 if scores.shape[1] <= 6 else 7
        axes.text(column, row, text, ha="center", va="center", fontsize=size, color="white" if dark else "black")
    axes.set_xticks(range(len(across.values)), [tick_label(value) for value in across.values])
    axes.set_yticks(range(len(down.values)), [tick_label(value) for value in down.values])
    if max(len(tick_label(value)) for value in across.values) * len(across.values) > 50:
        axes.tick_params(axis="x", rotation=30)
    axes.set_ylabel(names[pair[0]])
    axes.set_xlabel(names[pair[1]])
    rest = "" if keys == 2 else ", mean over the other keys"
    axes.set_title(f"{score_label(monitor)}{rest}", fontsize=10)
    axes.figure.colorbar(image, ax=axes)
