"""A finished run, read back from the files of its directory."""

import contextlib
import csv
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from chargpt.errors import Mistake
from chargpt.runs.score import Monitor, score_of


@dataclass
class FinishedRun:
    """What a finished run says of itself.

    Attributes:
        metrics: metrics.json.
        overrides: the words it was started with.
        choices: group -> the choice that was made in it, as `{"model": "gpt_nano", ...}`.
    """

    path: Path
    metrics: dict[str, Any]
    overrides: list[str]
    choices: dict[str, str]

    @property
    def monitor(self) -> Monitor:
        return Monitor.of(self.metrics)

    @property
    def score(self) -> float | None:
        """Its figure of the monitor."""
        return score_of(self.metrics, self.monitor)

    def curve(self, name: str) -> tuple[list[int], list[float]]:
        """Steps and values of a column of history.csv, where it has values."""
        return read_curves(self.path, [name])[name]

    @property
    def sample(self) -> str:
        return (self.path / "sample.txt").read_text()


def read_run(path: str | Path) -> FinishedRun:
    """Raises `Mistake` if there is no finished run at `path`."""
    path = Path(path)
    try:
        metrics = json.loads((path / "metrics.json").read_text())
        settings = OmegaConf.to_container(OmegaConf.load(path / ".hydra" / "hydra.yaml").hydra)
    except OSError as error:
        raise Mistake(
            f"{path} is not a finished run: {error.filename} cannot be read ({error.strerror})"
        ) from error
    return FinishedRun(path, metrics, settings["overrides"]["task"], settings["runtime"]["choices"])


def read_curves(run: Path, names: Iterable[str]) -> dict[str, tuple[list[int], list[float]]]:
    """Steps and values of columns of a run's history.csv; the line in which it was cut off is left out.

    Raises:
        OSError, csv.Error: there is no such file, or it is none.
    """
    curves: dict[str, tuple[list[int], list[float]]] = {name: ([], []) for name in names}
    with (run / "history.csv").open(newline="", encoding="utf-8", errors="replace") as file:
        for row in csv.DictReader(file):
            if None in row.values():
                continue
            for name, (steps, values) in curves.items():
                with contextlib.suppress(ValueError):
                    if row.get(name):
                        step, value = int(row["step"]), float(row[name])
                        steps.append(step)
                        values.append(value)
    return curves
