"""Runs as rows, best first: those that differ in nothing but their seed are one row."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf
from statistics import mean
from typing import Any

from chargpt.sweeps.recorded import RecordedRun
from chargpt.sweeps.varying import hashable, varying
from chargpt.training.run_directory import STATES


@dataclass
class Row:
    """The runs of one setting, another seed each.

    Attributes:
        values: key -> the value that these runs have of it.
    """

    values: dict[str, Any]
    runs: list[RecordedRun]

    @property
    def finished(self) -> list[RecordedRun]:
        return [run for run in self.runs if run.finished]

    @property
    def val_losses(self) -> list[float]:
        """Of the finished runs."""
        return self.figures(lambda run: run.figure("val_loss"))

    @property
    def loss(self) -> float:
        """Mean validation loss of the finished runs; infinite without one."""
        return mean(self.val_losses) if self.finished else inf

    @property
    def state(self) -> str:
        """`finished`, or `finished, 1 failed`, or `2 failed, 1 waiting`."""
        states = [run.state for run in self.runs]
        counts = {state: states.count(state) for state in reversed(STATES) if state in states}
        if len(counts) == 1:
            return states[0]
        return ", ".join(s if s == "finished" else f"{count} {s}" for s, count in counts.items())

    def figures(self, of: Callable[[RecordedRun], float | None]) -> list[float]:
        """A figure of each finished run that has it."""
        return [figure for figure in map(of, self.finished) if figure is not None]

    def mean(self, of: Callable[[RecordedRun], float | None]) -> float | None:
        figures = self.figures(of)
        return mean(figures) if figures else None


@dataclass
class Ranking:
    """Runs side by side.

    Attributes:
        keys: what varies, but for seeds that are averaged over.
        rows: the finished best first, then the others.
        seeded: whether some row averages over several runs.
    """

    keys: list[str]
    rows: list[Row]
    seeded: bool

    @property
    def finished(self) -> list[Row]:
        return [row for row in self.rows if row.finished]

    @property
    def runs(self) -> list[RecordedRun]:
        """All runs, in the order of the rows."""
        return [run for row in self.rows for run in row.runs]


def rank(runs: Sequence[RecordedRun]) -> Ranking:
    """The runs as rows, best first."""
    columns = varying(runs)
    settings = [{key: column[n] for key, column in columns.items()} for n in range(len(runs))]
    rows: dict[Any, Row] = {}
    for run, setting in zip(runs, settings, strict=True):
        values = {key: value for key, value in setting.items() if key != "seed"}
        # What a run with an unreadable config was, nobody knows: it stays alone.
        name = tuple(map(hashable, values.values())) if run.config else run.path
        rows.setdefault(name, Row(values, [])).runs.append(run)
    seeded = any(len(row.runs) > 1 for row in rows.values())
    keys = list(columns)
    if "seed" in keys:
        keys.remove("seed")
        if not seeded:  # there is nothing to average: it is a setting like others
            keys.append("seed")
            for row in rows.values():
                row.values["seed"] = row.runs[0].seed
    for row in rows.values():
        row.runs.sort(key=lambda run: (not run.finished, run.figure("val_loss") or inf, str(run.path)))
    return Ranking(keys, sorted(rows.values(), key=_order), seeded)


def _order(row: Row) -> tuple[float, int, float]:
    lasts = [run.last_val_loss for run in row.runs if run.last_val_loss is not None]
    return row.loss, -max(STATES.index(run.state) for run in row.runs), mean(lasts) if lasts else inf
