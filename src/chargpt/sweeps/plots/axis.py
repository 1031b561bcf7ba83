"""The axis of a key: its scale (linear, logarithmic or evenly spaced), ticks and labels."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import log
from statistics import mean
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator

from chargpt.analysis.fonts import escape_mathtext
from chargpt.runs.score import Monitor
from chargpt.sweeps.formatting import key_text
from chargpt.sweeps.swept_params import ABSENT, hashable, is_number

LOSS_LABEL = "validation loss, nats per token"
MIN_TICK_DISTANCE = 0.08  # between two ticks, as a fraction of the axis
MAX_TICKS = 12
MAX_TICK_LENGTH = 30  # characters
MAX_EVEN = 6  # values of a search over an interval that are evenly spaced instead of to scale
LOG_KEYS = ("lr",)


@dataclass
class Scale:
    """The axis of a key.

    Attributes:
        values: the distinct values in order, each with a tick; empty for a key with too many values.
        kind: "linear", "log", or "even" (evenly spaced).
        ordered: whether a line between neighboring values is meaningful.
    """

    values: list[Any] = field(default_factory=list)
    kind: str = "even"
    ordered: bool = False

    def rank(self, value: Any) -> int:
        return [hashable(other) for other in self.values].index(hashable(value))

    def position(self, value: Any) -> float:
        return float(self.rank(value) if self.kind == "even" else value)


def score_label(monitor: Monitor) -> str:
    """The label of an axis of scores."""
    return LOSS_LABEL if monitor.name == "val_loss" else escape_mathtext(monitor.label)


def make_scale(points: Sequence[tuple[Any, float]], monitor: Monitor, key: str = "") -> Scale:
    """The axis for (value, score) points of a key: numbers in ascending order, names by mean score, worst first.

    Args:
        key: its dotted name; the values of those that end in one of `LOG_KEYS` are compared by factors.
    """
    scores: dict[Any, list[float]] = {}
    values: dict[Any, Any] = {}
    for value, score in points:
        if value is not ABSENT:
            scores.setdefault(hashable(value), []).append(score)
            values.setdefault(hashable(value), value)
    if all(map(is_number, values.values())):
        by_factors = re.split(r"[._]", key)[-1] in LOG_KEYS
        return _numeric(sorted(values.values()), by_factors)
    worst_first = sorted(scores, key=lambda value: monitor.sort_key(mean(scores[value])), reverse=True)
    return Scale([values[value] for value in worst_first])


def set_ticks(axes: Axes, scale: Scale) -> None:
    """Sets a tick for each value, labeled as in an override."""
    if scale.kind == "log":
        axes.set_xscale("log")
    if not scale.values:
        return
    labels = [tick_label(value) for value in scale.values]
    axes.set_xticks([scale.position(value) for value in scale.values], labels)
    axes.xaxis.set_minor_locator(NullLocator())
    if sum(map(len, labels)) > 30:
        axes.tick_params(axis="x", labelsize=8)
        for label in axes.get_xticklabels():
            label.set(rotation=30, ha="right", rotation_mode="anchor")
    if scale.kind == "even":
        axes.set_xlim(-0.5, len(scale.values) - 0.5)


def _numeric(values: list[Any], by_factors: bool) -> Scale:
    if len(values) == 1:
        return Scale(values, "linear", True)
    ratio = values[-1] / values[0] if values[0] > 0 else 0
    logarithmic = ratio >= 3 if by_factors else ratio >= 10 and _spread_by_factors(values)
    if len(values) <= MAX_TICKS:
        if logarithmic and _are_separated(values, log):
            return Scale(values, "log", True)
        if not logarithmic and _are_separated(values, float):
            return Scale(values, "linear", True)
        if ratio and _are_separated(values, log):
            return Scale(values, "log", True)
    # Of many values, or of a search over an interval, which draws values close to each other.
    if len(values) > MAX_TICKS or (len(values) > MAX_EVEN and any(isinstance(value, float) for value in values)):
        return Scale([], "log" if logarithmic else "linear", True)
    return Scale(values, "even", True)


def _spread_by_factors(values: list[Any]) -> bool:
    """Whether the values, such as learning rates, are spaced more evenly on a logarithmic axis than on a linear one."""
    low, high = values[0], values[-1]
    linear = mean((value - low) / (high - low) for value in values)
    by_factors = mean(log(value / low) / log(high / low) for value in values)
    return abs(by_factors - 0.5) < abs(linear - 0.5)


def _are_separated(values: list[Any], scale: Callable[[float], float]) -> bool:
    positions = [scale(value) for value in values]
    gaps = [high - low for low, high in pairwise(positions)]
    return min(gaps) >= MIN_TICK_DISTANCE * (positions[-1] - positions[0])


def tick_label(value: Any) -> str:
    """The label of a value; a long path is shortened to its end."""
    text = key_text(value)
    return escape_mathtext(text if len(text) <= MAX_TICK_LENGTH else f"…{text[1 - MAX_TICK_LENGTH :]}")
