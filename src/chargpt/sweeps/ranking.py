"""Runs as rows, best first: those that differ in nothing but their seed are one row.

Only runs of one monitor are ranked together. Where their tokenizers differ, bits a character rank them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

from chargpt.runs.directory import STATES
from chargpt.runs.record import RunRecord
from chargpt.runs.score import Monitor, score_of
from chargpt.sweeps.swept_params import hashable, swept_params


@dataclass
class Row:
    """The runs of one setting, another seed each.

    Attributes:
        values: key -> the value that these runs have of it.
        monitor: what ranks them.
    """

    values: dict[str, Any]
    runs: list[RunRecord]
    monitor: Monitor

    @property
    def finished(self) -> list[RunRecord]:
        return [run for run in self.runs if run.finished]

    @property
    def scores(self) -> list[float]:
        """Of the finished runs."""
        return self.figures(lambda run: score_of(run.metrics, self.monitor))

    @property
    def score(self) -> float | None:
        """The mean score of the finished runs; None without one."""
        return self.mean(lambda run: score_of(run.metrics, self.monitor))

    @property
    def lasts(self) -> list[tuple[int, float]]:
        """The last step and score in the history of each run that has one."""
        return [run.lasts[self.monitor.name] for run in self.runs if self.monitor.name in run.lasts]

    @property
    def state(self) -> str:
        """`finished`, or `finished, 1 failed`, or `2 failed, 1 waiting`."""
        states = [run.state for run in self.runs]
        counts = {state: states.count(state) for state in reversed(STATES) if state in states}
        if len(counts) == 1:
            return states[0]
        return ", ".join(s if s == "finished" else f"{count} {s}" for s, count in counts.items())

    def figures(self, of: Callable[[RunRecord], float | None]) -> list[float]:
        """A figure of each finished run that has it."""
        return [figure for figure in map(of, self.finished) if figure is not None]

    def mean(self, of: Callable[[RunRecord], float | None]) -> float | None:
        figures = self.figures(of)
        return mean(figures) if figures else None


@dataclass
class Ranking:
    """Runs side by side.

    Attributes:
        keys: what varies, but for seeds that are averaged over.
        rows: the finished best first, then the others.
        seeded: whether some row averages over several runs.
        own: the monitor of the runs.
        monitor: what ranks them.
    """

    keys: list[str]
    rows: list[Row]
    seeded: bool
    own: Monitor
    monitor: Monitor

    @property
    def scored(self) -> list[Row]:
        return [row for row in self.rows if row.scores]

    @property
    def started(self) -> bool:
        """Whether the history of some run has a score."""
        return any(row.lasts for row in self.rows)

    @property
    def runs(self) -> list[RunRecord]:
        """All runs, in the order of the rows."""
        return [run for row in self.rows for run in row.runs]


def rank_apart(runs: Sequence[RunRecord]) -> list[Ranking]:
    """A ranking for each monitor; runs whose monitor cannot be read belong to the first."""
    first = next((run.monitor for run in runs if run.monitor), Monitor())
    groups: dict[Monitor, list[RunRecord]] = {}
    for run in runs:
        groups.setdefault(run.monitor or first, []).append(run)
    return [rank(group) for group in groups.values()]


def rank(runs: Sequence[RunRecord]) -> Ranking:
    """The runs of one monitor as rows, best first."""
    (own,) = {run.monitor for run in runs if run.monitor} or {Monitor()}
    tokenizers = {hashable(run.tokenizer) for run in runs if run.config}
    monitor = own if len(tokenizers) <= 1 else own.between_tokenizers
    columns = swept_params(runs)
    settings = [{key: column[n] for key, column in columns.items()} for n in range(len(runs))]
    rows: dict[Any, Row] = {}
    for run, setting in zip(runs, settings, strict=True):
        values = {key: value for key, value in setting.items() if key != "seed"}
        # What a run with an unreadable config was, nobody knows: it stays alone.
        name = tuple(map(hashable, values.values())) if run.config else run.path
        rows.setdefault(name, Row(values, [], monitor)).runs.append(run)
    seeded = any(len(row.runs) > 1 for row in rows.values())
    keys = list(columns)
    if "seed" in keys:
        keys.remove("seed")
        if not seeded:  # there is nothing to average: it is a setting like others
            keys.append("seed")
            for row in rows.values():
                row.values["seed"] = row.runs[0].seed
    for row in rows.values():
        row.runs.sort(key=lambda run: (not run.finished, _key(run, monitor), str(run.path)))
    return Ranking(keys, sorted(rows.values(), key=_order), seeded, own, monitor)


def _key(run: RunRecord, monitor: Monitor) -> float:
    return monitor.sort_key(score_of(run.metrics, monitor) if run.finished else None)


def _order(row: Row) -> tuple[float, int, float]:
    last = mean(score for _, score in row.lasts) if row.lasts else None
    state = max(STATES.index(run.state) for run in row.runs)
    return row.monitor.sort_key(row.score), -state, row.monitor.sort_key(last)
