"""sweep.png: the scores over each key that varies, over a pair of keys (heat map), and over training FLOPs."""

from collections import Counter
from itertools import pairwise
from statistics import mean, stdev
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from chargpt.analysis.fonts import escape_mathtext
from chargpt.runs.record import RunRecord
from chargpt.runs.score import Monitor, score_of
from chargpt.sweeps.formatting import short_names
from chargpt.sweeps.plots.axis import Scale, make_scale, score_label, set_ticks
from chargpt.sweeps.plots.curves import plot_curves
from chargpt.sweeps.plots.heat_map import plot_heat_map, select_pair
from chargpt.sweeps.plots.pareto import plot_pareto
from chargpt.sweeps.ranking import Ranking, Row
from chargpt.sweeps.swept_params import ABSENT, hashable

DPI = 100
WIDTH, ROW_HEIGHT = 12.0, 4.2  # inches

Points = list[tuple[Any, float]]  # (value of a key, score) of each run


def plot_sweep(ranking: Ranking, name: str) -> Figure:
    """Plots all panels in one figure. If no run has a score, it shows the states and reasons of the runs instead.

    Args:
        name: the name of the sweep, for the title.
    """
    columns, monitor = _columns(ranking), ranking.monitor
    if not ranking.scored:
        return _plot_statuses(ranking, name)
    pair = select_pair(columns)
    keys = list(columns) or (["curves"] if ranking.started else [])
    last = ["pair"] if pair else []
    # Without runs of different costs there is no front to show; but the figure needs a panel.
    if len({flops for row in ranking.scored if (flops := row.mean(lambda run: run.training_flops))}) > 1 or not keys:
        last.append("pareto")
    rows = _rows(keys, last)
    figure = Figure(figsize=(WIDTH, ROW_HEIGHT * len(rows) + 0.4), dpi=DPI, layout="constrained")
    figure.suptitle(_title(ranking, name), fontsize=11, x=0.01, ha="left")
    subfigures = figure.subfigures(len(rows), 1, squeeze=False)[:, 0]
    names, first = short_names(columns), None
    legend: dict[str, Any] = {}
    for subfigure, row in zip(subfigures, rows, strict=True):
        for position, panel in enumerate(row, 1):
            axes = subfigure.add_subplot(1, len(row), position, sharey=first if panel in columns else None)
            if panel == "pareto":
                plot_pareto(figure, axes, ranking)
            elif panel == "curves":
                plot_curves(axes, ranking.runs, monitor)
            elif panel == "pair" and pair:
                plot_heat_map(axes, pair, columns, monitor)
            else:
                first = first or axes
                _plot_key(axes, panel, names[panel], columns[panel], monitor)
                legend |= {label: handle for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    if legend:
        figure.legend(legend.values(), legend.keys(), loc="outside upper right", ncols=4, fontsize=8)
    return figure


def _columns(ranking: Ranking) -> dict[str, Points]:
    """Key -> (value, score) of each finished run with a score; the order of the runs is the same for all keys."""
    scored = [(row, run, score_of(run.metrics, row.monitor)) for row in ranking.rows for run in row.finished]
    runs = [(row, run, score) for row, run, score in scored if score is not None]
    keys = ranking.keys or (["seed"] if len(runs) > 1 else [])

    def value(key: str, row: Row, run: RunRecord) -> Any:
        return str(run.seed) if key == "seed" else row.values.get(key, ABSENT)

    columns = {key: [(value(key, row, run), score) for row, run, score in runs] for key in keys}
    return {key: points for key, points in columns.items() if len({hashable(v) for v, _ in points}) > 1}


def _rows(keys: list[str], last: list[str]) -> list[list[str]]:
    """The panels of each row: at most three keys per row, evenly distributed; the `last` panels in the last row."""
    if len(keys) <= 1:
        return [[*keys, *last]]
    count = -(-len(keys) // 3)
    cuts = [round(n * len(keys) / count) for n in range(count + 1)]
    return [row for row in (*(keys[a:b] for a, b in pairwise(cuts)), last) if row]


def _title(ranking: Ranking, name: str) -> str:
    states = Counter(run.state for run in ranking.runs)
    others = "".join(f", {count} {state}" for state, count in states.items() if state != "finished")
    best = f"best {ranking.monitor.label} {ranking.scored[0].score:.4f}"
    if any(run.partial_validation for run in ranking.runs):
        best += " (some on a part of the validation split)"
    return escape_mathtext(f"{name}: {states['finished']} finished{others}; {best}")


def _plot_key(axes: Axes, key: str, name: str, points: Points, monitor: Monitor) -> None:
    points = [(value, score) for value, score in points if value is not ABSENT]
    scale = make_scale(points, monitor, key)
    positions = np.array([scale.position(value) for value, _ in points])
    scores = np.array([score for _, score in points])
    axes.scatter(positions, scores, s=22, color="C0", alpha=0.45, linewidth=0, label="run", zorder=3)
    _plot_means(axes, scale, positions, scores)
    set_ticks(axes, scale)
    axes.set_xlabel(name)
    axes.set_ylabel(score_label(monitor) if (spec := axes.get_subplotspec()) and spec.is_first_col() else "")
    axes.grid(alpha=0.3)


def _plot_means(axes: Axes, scale: Scale, positions: np.ndarray, scores: np.ndarray) -> None:
    if not scale.values:  # too many values: about one run per value, nothing to average
        return
    x = sorted(set(positions.tolist()))
    groups = [scores[positions == position].tolist() for position in x]
    means = np.array([mean(group) for group in groups])
    spreads = np.array([stdev(group) if len(group) > 1 else 0.0 for group in groups])
    if scale.ordered:
        axes.plot(x, means, color="C0", marker="o", markersize=4, label="mean")
        if spreads.any():
            low, high = means - spreads, means + spreads
            axes.fill_between(x, low, high, color="C0", alpha=0.15, linewidth=0, label="± standard deviation")
    else:
        label = "mean ± standard deviation" if spreads.any() else "mean"
        style = {"fmt": "_", "markersize": 16, "capsize": 4, "color": "C0", "label": label}
        axes.errorbar(x, means, yerr=spreads if spreads.any() else None, **style)


def _plot_statuses(ranking: Ranking, name: str) -> Figure:
    """A figure for runs without a score: their states and reasons, and their training curves."""
    curves = ranking.started
    figure = Figure(figsize=(8, 2 + 3 * curves), dpi=DPI, layout="constrained")
    states = Counter(run.state for run in ranking.runs)
    problem = f"has {ranking.monitor.name}" if states["finished"] else "has finished"
    lines = [f"{name}: no run {problem}", ", ".join(f"{count} {state}" for state, count in states.items())]
    reasons = Counter(run.reason for run in ranking.runs if run.reason)
    lines += [f"{reason[:90]} ({count})" for reason, count in reasons.most_common(3)]
    figure.suptitle(escape_mathtext("\n".join(lines)), fontsize=10, linespacing=1.5)
    if curves:
        plot_curves(figure.subplots(), ranking.runs, ranking.monitor)
    return figure
