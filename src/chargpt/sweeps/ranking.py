"""Ranks runs: one row per setting, averaged over seeds, best first.

Only runs with the same monitor are ranked together. If their tokenizers differ, bits per character rank them.
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
    """The runs of one setting, with different seeds.

    Attributes:
        values: key -> the value in these runs.
        monitor: the monitor that ranks them.
    """

    values: dict[str, Any]
    runs: list[RunRecord]
    monitor: Monitor

    @property
    def finished(self) -> list[RunRecord]:
        return [run for run in self.runs if run.finished]

    @property
    def scores(self) -> list[float]:
        """The scores of the finished runs."""
        return self.finished_values(lambda run: score_of(run.metrics, self.monitor))

    @property
    def score(self) -> float | None:
        """The mean score of the finished runs; None if there is none."""
        return self.mean(lambda run: score_of(run.metrics, self.monitor))

    @property
    def last_values(self) -> list[tuple[int, float]]:
        """The last step and score in the history of each run that has one."""
        return [run.last_values[self.monitor.name] for run in self.runs if self.monitor.name in run.last_values]

    @property
    def state(self) -> str:
        """`finished`, or `finished, 1 failed`, or `2 failed, 1 waiting`."""
        states = [run.state for run in self.runs]
        counts = {state: states.count(state) for state in reversed(STATES) if state in states}
        if len(counts) == 1:
            return states[0]
        return ", ".join(s if s == "finished" else f"{count} {s}" for s, count in counts.items())

    def finished_values(self, of: Callable[[RunRecord], float | None]) -> list[float]:
        """`of(run)` for each finished run, without None."""
        return [value for value in map(of, self.finished) if value is not None]

    def mean(self, of: Callable[[RunRecord], float | None]) -> float | None:
        values = self.finished_values(of)
        return mean(values) if values else None


@dataclass
class Ranking:
    """The compared runs.

    Attributes:
        keys: the keys that vary, without a seed that is averaged over.
        rows: the finished rows, best first, then the others.
        seeded: whether a row averages over several runs.
        run_monitor: the monitor of the runs.
        monitor: the monitor that ranks them: `run_monitor`, or bits per character if the tokenizers differ.
    """

    keys: list[str]
    rows: list[Row]
    seeded: bool
    run_monitor: Monitor
    monitor: Monitor

    @property
    def scored(self) -> list[Row]:
        return [row for row in self.rows if row.scores]

    @property
    def started(self) -> bool:
        """Whether the history of at least one run contains a score."""
        return any(row.last_values for row in self.rows)

    @property
    def runs(self) -> list[RunRecord]:
        """All runs, in the order of the rows."""
        return [run for row in self.rows for run in row.runs]


def rank_by_monitor(runs: Sequence[RunRecord]) -> list[Ranking]:
    """One ranking per monitor; runs whose monitor cannot be read are added to the first."""
    first = next((run.monitor for run in runs if run.monitor), Monitor())
    groups: dict[Monitor, list[RunRecord]] = {}
    for run in runs:
        groups.setdefault(run.monitor or first, []).append(run)
    return [rank(group) for group in groups.values()]


def rank(runs: Sequence[RunRecord]) -> Ranking:
    """Ranks the runs of one monitor."""
    (run_monitor,) = {run.monitor for run in runs if run.monitor} or {Monitor()}
    tokenizers = {hashable(run.tokenizer) for run in runs if run.config}
    monitor = run_monitor if len(tokenizers) <= 1 else run_monitor.between_tokenizers
    columns = swept_params(runs)
    settings = [{key: column[n] for key, column in columns.items()} for n in range(len(runs))]
    rows: dict[Any, Row] = {}
    for run, setting in zip(runs, settings, strict=True):
        values = {key: value for key, value in setting.items() if key != "seed"}
        # A run with an unreadable config has unknown settings: it gets its own row.
        row_key = tuple(map(hashable, values.values())) if run.config else run.path
        rows.setdefault(row_key, Row(values, [], monitor)).runs.append(run)
    seeded = any(len(row.runs) > 1 for row in rows.values())
    keys = list(columns)
    if "seed" in keys:
        keys.remove("seed")
        if not seeded:  # nothing is averaged over: the seed is a setting like any other
            keys.append("seed")
            for row in rows.values():
                row.values["seed"] = row.runs[0].seed
    for row in rows.values():
        row.runs.sort(key=lambda run: (not run.finished, _run_sort_key(run, monitor), str(run.path)))
    return Ranking(keys, sorted(rows.values(), key=_row_sort_key), seeded, run_monitor, monitor)


def _run_sort_key(run: RunRecord, monitor: Monitor) -> float:
    return monitor.sort_key(score_of(run.metrics, monitor) if run.finished else None)


def _row_sort_key(row: Row) -> tuple[float, int, float]:
    last = mean(score for _, score in row.last_values) if row.last_values else None
    state = max(STATES.index(run.state) for run in row.runs)
    return row.monitor.sort_key(row.score), -state, row.monitor.sort_key(last)
