"""The Pareto front: the rows that no other row with equal or fewer training FLOPs surpasses in score."""

from collections.abc import Sequence
from math import inf, log10
from textwrap import fill, shorten

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import LogLocator, NullLocator

from chargpt.analysis.fonts import escape_mathtext
from chargpt.runs.score import Monitor
from chargpt.sweeps.formatting import flops_text, key_text, short_names
from chargpt.sweeps.labels import row_label
from chargpt.sweeps.plots.axis import score_label
from chargpt.sweeps.ranking import Ranking, Row
from chargpt.sweeps.swept_params import ABSENT

LINE_LENGTH, MAX_LINES = 36, 3  # of a label, in characters and lines
GAP = 7  # pixels between a point and its label


def pareto_front(points: Sequence[tuple[float, float]], monitor: Monitor) -> list[int]:
    """Indices of the points whose score is better than that of all points of equal or lower cost, cheapest first.

    Args:
        points: (cost, score) pairs.
    """
    front: list[int] = []
    for n in sorted(range(len(points)), key=lambda n: (points[n][0], monitor.sort_key(points[n][1]))):
        if not front or monitor.is_better(points[n][1], than=points[front[-1]][1]):
            front.append(n)
    return front


def plot_pareto(figure: Figure, axes: Axes, ranking: Ranking) -> None:
    """Plots the mean score of each row over its training FLOPs, and the front as a step line with labels."""
    scored = [(row, row.mean(lambda run: run.training_flops), row.score) for row in ranking.scored]
    shown = [(row, (flops, score)) for row, flops, score in scored if flops and score is not None]
    rows, points = [row for row, _ in shown], [point for _, point in shown]
    left_out = [_label(row, ranking) for row in ranking.scored if row not in rows]
    note = shorten(f"not shown, without FLOPs: {', '.join(left_out)}", 60, placeholder="…") if left_out else ""
    axes.set_xlabel(f"training FLOPs\n{note}".strip())
    axes.set_ylabel(score_label(ranking.monitor))
    axes.set_title("Pareto front: the best score for each FLOP budget", fontsize=10)
    axes.grid(alpha=0.3)
    if not rows:
        axes.text(0.5, 0.5, "no run reports its FLOPs", ha="center", va="center", transform=axes.transAxes)
        return
    front = pareto_front(points, ranking.monitor)
    costs, scores = zip(*points, strict=True)
    axes.set_xscale("log")
    axes.scatter(costs, scores, s=22, color="C0", alpha=0.45, linewidth=0, zorder=3)
    x, y = zip(*(points[n] for n in front), strict=True)
    axes.step([*x, max(costs)], [*y, y[-1]], where="post", color="tab:red", linewidth=1.2)
    axes.scatter(x, y, s=30, color="tab:red", zorder=4)
    labels = [_label(rows[n], ranking) for n in front]
    _add_labels(figure, axes, [points[n] for n in front], labels, 1 if ranking.monitor.mode == "min" else -1)


def _label(row: Row, ranking: Ranking) -> str:
    names = short_names(ranking.keys)
    parts = []
    for key in ranking.keys:
        value = row.values.get(key, ABSENT)
        if isinstance(value, str):
            parts.append(key_text(value))  # an option is clear without its group
        elif value is not ABSENT:
            parts.append(f"{names[key]}={key_text(value)}")
    label = " ".join(parts) or row_label(row)
    return escape_mathtext(fill(label, LINE_LENGTH, max_lines=MAX_LINES, placeholder="…", break_on_hyphens=False))


def _add_labels(figure: Figure, axes: Axes, points: list[tuple[float, float]], labels: list[str], up: int) -> None:
    """Adds the labels to the left of their points, on the side of better scores, where there are no other points.

    Args:
        up: 1 if lower scores are better, and labels are below their points; -1 if higher scores are better.
    """
    texts: list[Text] = []
    for label, point in zip(labels, points, strict=True):
        arrow = {"arrowstyle": "-", "color": "tab:red", "linewidth": 0.6}
        arrow |= {"shrinkA": 0, "shrinkB": 3, "relpos": (1, 0.5)}
        style = {
            "ha": "right",
            "va": "top" if up == 1 else "bottom",
            "ma": "right",
            "fontsize": 8,
            "textcoords": "offset pixels",
            "arrowprops": arrow,
        }
        texts.append(axes.annotate(label, point, (-GAP, -GAP * up), **style))
        texts[-1].set_in_layout(False)
    figure.draw_without_rendering()
    boxes = [Text.get_window_extent(text) for text in texts]
    frame = axes.get_window_extent()
    left = min((max(box.width for box in boxes) + 3 * GAP) / frame.width, 0.7)
    limit = frame.y0 if up == 1 else -frame.y1
    for margin in (0.08, 0.16, 0.24, 0.32, 0.4, 0.5, 0.6):  # the smallest in which all labels fit
        _set_margins(axes, left, *((margin, 0.05) if up == 1 else (0.05, margin)))
        heights = [up * axes.transData.transform(point)[1] for point in points]
        tops, bottom = [], inf
        for box, height in zip(boxes, heights, strict=True):
            tops.append(min(height - GAP, bottom - 2))
            bottom = tops[-1] - box.height
        if bottom > limit:
            break
    for text, top, height in zip(texts, tops, heights, strict=True):
        text.set_position((-GAP, up * (top - height)))


def _set_margins(axes: Axes, left: float, below: float, above: float) -> None:
    """Sets axis limits that leave these fractions of the axes free, left of, below and above all points."""
    points = [offset for collection in axes.collections for offset in np.asarray(collection.get_offsets())]
    logs, scores = [log10(x) for x, _ in points], [y for _, y in points]
    data_width, data_height = max(max(logs) - min(logs), 0.3), max(max(scores) - min(scores), 0.02)
    width, height = data_width / (1 - left - 0.05), data_height / (1 - below - above)
    x_min, y_min = (max(logs) + min(logs) - data_width) / 2, (max(scores) + min(scores) - data_height) / 2
    axes.set_xlim(10 ** (x_min - left * width), 10 ** (x_min + data_width + 0.05 * width))
    axes.set_ylim(y_min - below * height, y_min + data_height + above * height)
    subs = (1.0,) if width > 2 else (1.0, 2.0, 5.0) if width > 1 else (1.0, 1.5, 2.0, 3.0, 5.0, 7.0)
    axes.xaxis.set_major_locator(LogLocator(subs=subs, numticks=20))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(lambda flops, position: flops_text(flops).replace(".0e", "e"))
