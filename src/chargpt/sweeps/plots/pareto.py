"""The Pareto front: the runs that no other beats in score with as few training FLOPs."""

from collections.abc import Sequence
from math import inf, log10
from textwrap import fill, shorten

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import LogLocator, NullLocator

from chargpt.runs.score import Monitor
from chargpt.sweeps.formatting import flops_text, key_text, short_names, short_path
from chargpt.sweeps.plots.axis import escape_mathtext, score_label
from chargpt.sweeps.ranking import Ranking, Row
from chargpt.sweeps.swept_params import ABSENT

LINE, LINES = 36, 3  # characters of a line of a label, and its lines
GAP = 7  # pixels between a point and its label


def pareto_front(points: Sequence[tuple[float, float]], monitor: Monitor) -> list[int]:
    """Which points have a better score than all that cost as little or less, the cheapest first.

    Args:
        points: cost and score of each.
    """
    front: list[int] = []
    for n in sorted(range(len(points)), key=lambda n: (points[n][0], monitor.sort_key(points[n][1]))):
        if not front or monitor.is_better(points[n][1], than=points[front[-1]][1]):
            front.append(n)
    return front


def plot_pareto(figure: Figure, axes: Axes, ranking: Ranking) -> None:
    """Mean score of each row against its training FLOPs, the front as a step line with its rows named."""
    rows = [row for row in ranking.scored if row.mean(lambda run: run.training_flops)]
    points = [(row.mean(lambda run: run.training_flops), row.score) for row in rows]
    left_out = [_label(row, ranking) for row in ranking.scored if row not in rows]
    note = shorten(f"not on the axis, having none: {', '.join(left_out)}", 60, placeholder="…") if left_out else ""
    axes.set_xlabel(f"training FLOPs\n{note}".strip())
    axes.set_ylabel(score_label(ranking.monitor))
    axes.set_title("the best for each budget: Pareto front", fontsize=10)
    axes.grid(alpha=0.3)
    if not rows:
        axes.text(0.5, 0.5, "no run says its FLOPs", ha="center", va="center", transform=axes.transAxes)
        return
    front = pareto_front(points, ranking.monitor)
    costs, scores = zip(*points, strict=True)
    axes.set_xscale("log")
    axes.scatter(costs, scores, s=22, color="C0", alpha=0.45, linewidth=0, zorder=3)
    x, y = zip(*(points[n] for n in front), strict=True)
    axes.step([*x, max(costs)], [*y, y[-1]], where="post", color="tab:red", linewidth=1.2)
    axes.scatter(x, y, s=30, color="tab:red", zorder=4)
    labels = [_label(rows[n], ranking) for n in front]
    _name(figure, axes, [points[n] for n in front], labels, 1 if ranking.monitor.mode == "min" else -1)


def _label(row: Row, ranking: Ranking) -> str:
    names = short_names(ranking.keys)
    parts = []
    for key in ranking.keys:
        value = row.values.get(key, ABSENT)
        if isinstance(value, str):
            parts.append(key_text(value))  # a choice says by itself what it is
        elif value is not ABSENT:
            parts.append(f"{names[key]}={key_text(value)}")
    label = " ".join(parts) or short_path(row.runs[0].path, row.runs[0].path.parent)
    return escape_mathtext(fill(label, LINE, max_lines=LINES, placeholder="…", break_on_hyphens=False))


def _name(figure: Figure, axes: Axes, points: list[tuple[float, float]], labels: list[str], up: int) -> None:
    """Writes each label to the left of its point and beyond it, where nothing lies, one after the other.

    Args:
        up: 1 if worse scores lie higher, and the labels below their points; -1 if it is the other way round.
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
    end = frame.y0 if up == 1 else -frame.y1
    for room in (0.08, 0.16, 0.24, 0.32, 0.4, 0.5, 0.6):  # as little as will do
        _make_room(axes, left, *((room, 0.05) if up == 1 else (0.05, room)))
        heights = [up * axes.transData.transform(point)[1] for point in points]
        tops, bottom = [], inf
        for box, height in zip(boxes, heights, strict=True):
            tops.append(min(height - GAP, bottom - 2))
            bottom = tops[-1] - box.height
        if bottom > end:
            break
    for text, top, height in zip(texts, tops, heights, strict=True):
        text.set_position((-GAP, up * (top - height)))


def _make_room(axes: Axes, left: float, below: float, above: float) -> None:
    """Sets limits such that these shares of the axes, left of all points, below and above them, are free."""
    points = [offset for collection in axes.collections for offset in collection.get_offsets()]
    logs, scores = [log10(x) for x, _ in points], [y for _, y in points]
    wide, tall = max(max(logs) - min(logs), 0.3), max(max(scores) - min(scores), 0.02)
    span, height = wide / (1 - left - 0.05), tall / (1 - below - above)
    first, lowest = (max(logs) + min(logs) - wide) / 2, (max(scores) + min(scores) - tall) / 2
    axes.set_xlim(10 ** (first - left * span), 10 ** (first + wide + 0.05 * span))
    axes.set_ylim(lowest - below * height, lowest + tall + above * height)
    subs = (1.0,) if span > 2 else (1.0, 2.0, 5.0) if span > 1 else (1.0, 1.5, 2.0, 3.0, 5.0, 7.0)
    axes.xaxis.set_major_locator(LogLocator(subs=subs, numticks=20))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(lambda flops, place: flops_text(flops).replace(".0e", "e"))
