"""The heat map: the mean score for each pair of values of two keys; pairs without runs stay empty."""

from itertools import combinations
from statistics import mean, stdev
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from chargpt.runs.score import Monitor
from chargpt.sweeps.formatting import short_names
from chargpt.sweeps.plots.axis import make_scale, score_label, tick_label
from chargpt.sweeps.swept_params import ABSENT, hashable

MAX_VALUES = 12  # of a key

Columns = dict[str, list[tuple[Any, float]]]  # key -> its value and the score of each run


def select_pair(columns: Columns) -> tuple[str, str] | None:
    """The two keys with the most values, at most `MAX_VALUES` each, with runs for at least half of their pairs."""
    counts = {key: len({hashable(v) for v, _ in points if v is not ABSENT}) for key, points in columns.items()}

    def is_filled(first: str, second: str) -> bool:
        points = zip(columns[first], columns[second], strict=True)
        cells = {(hashable(v), hashable(other)) for (v, _), (other, _) in points if ABSENT not in (v, other)}
        return 2 * len(cells) >= counts[first] * counts[second]

    candidates = [key for key, count in counts.items() if 1 < count <= MAX_VALUES]
    pairs = [pair for pair in combinations(candidates, 2) if is_filled(*pair)]
    return max(pairs, key=lambda pair: counts[pair[0]] * counts[pair[1]], default=None)


def plot_heat_map(axes: Axes, pair: tuple[str, str], columns: Columns, monitor: Monitor) -> None:
    """Draws the mean score of each cell (brightest: best), and the standard deviation if no other key varies."""
    num_keys, names = len(columns), short_names(columns)
    y_scale, x_scale = (make_scale(columns[key], monitor) for key in pair)
    cells: dict[tuple[int, int], list[float]] = {}
    for (y, score), (x, _) in zip(columns[pair[0]], columns[pair[1]], strict=True):
        if y is not ABSENT and x is not ABSENT:
            cells.setdefault((y_scale.rank(y), x_scale.rank(x)), []).append(score)
    scores = np.full((len(y_scale.values), len(x_scale.values)), np.nan)
    for cell, cell_scores in cells.items():
        scores[cell] = mean(cell_scores)
    colors = "viridis_r" if monitor.mode == "min" else "viridis"
    image = axes.imshow(scores, cmap=colors, aspect="auto", origin="lower")
    best, worst = sorted((np.nanmin(scores), np.nanmax(scores)), key=monitor.sort_key)
    for (row, column), cell_scores in cells.items():
        dark = abs(scores[row, column] - best) / max(abs(worst - best), 1e-12) > 0.5
        spread = f"\n± {stdev(cell_scores):.3f}" if len(cell_scores) > 1 and num_keys == 2 else ""
        text = f"{scores[row, column]:.3f}{spread}"
        size = 9 if scores.shape[1] <= 6 else 7
        axes.text(column, row, text, ha="center", va="center", fontsize=size, color="white" if dark else "black")
    axes.set_xticks(range(len(x_scale.values)), [tick_label(value) for value in x_scale.values])
    axes.set_yticks(range(len(y_scale.values)), [tick_label(value) for value in y_scale.values])
    if max(len(tick_label(value)) for value in x_scale.values) * len(x_scale.values) > 50:
        axes.tick_params(axis="x", rotation=30)
    axes.set_ylabel(names[pair[0]])
    axes.set_xlabel(names[pair[1]])
    note = "" if num_keys == 2 else ", mean over the other keys"
    axes.set_title(f"{score_label(monitor)}{note}", fontsize=10)
    axes.figure.colorbar(image, ax=axes)
