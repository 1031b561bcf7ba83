"""Reads a run back from its directory, in any state; damaged files are reported, not raised."""

import contextlib
import csv
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any

import yaml

from chargpt.checkpoint.migrations import migrate, migrate_key, migrate_override
from chargpt.errors import UserError
from chargpt.runs.directory import STATES, RunDirectory
from chargpt.runs.score import BETWEEN_TOKENIZERS, Monitor, number, score_of

# The C parser reads a sweep of a thousand runs in a second; OmegaConf's own takes half a minute.
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass
class RunRecord:
    """What one run directory says.

    Attributes:
        state: one of `STATES`.
        reason: why it is not finished, or what is damaged; one line, or empty.
        metrics: metrics.json; empty without one.
        config: the resolved config; empty if it cannot be read.
        choices: group -> the choice that was made in it.
        overrides: its command line.
        monitor: the figure by which the run is compared; None if neither its metrics nor its config can be read.
        lasts: the last step and value of the monitor's figure in history.csv, and of bits a character, by name.
    """

    path: Path
    state: str = "failed"
    reason: str = ""
    metrics: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    choices: dict[str, str | None] = field(default_factory=dict)
    overrides: list[str] = field(default_factory=list)
    monitor: Monitor | None = None
    lasts: dict[str, tuple[int, float]] = field(default_factory=dict)

    @property
    def typed(self) -> frozenset[str]:
        """The keys and groups that its command line named."""
        return frozenset(word.partition("=")[0].lstrip("+~") for word in self.overrides)

    @property
    def sample(self) -> str:
        return (self.path / "sample.txt").read_text()

    def curve(self, name: str) -> tuple[list[int], list[float]]:
        """Steps and values of a column of history.csv, where it has values."""
        return read_curves(self.path, [name])[name]

    def figure(self, name: str) -> float | None:
        """A number of metrics.json; None where there is none."""
        return number(self.metrics.get(name))

    @property
    def score(self) -> float | None:
        """Its figure of its own monitor."""
        return score_of(self.metrics, self.monitor) if self.monitor else None

    @property
    def finished(self) -> bool:
        return self.state == "finished" and self.score is not None

    @property
    def tokenizer(self) -> Any:
        """The settings of its tokenizer; None if it has none of its own."""
        return _inner(self.config, "data", "tokenizer")

    @property
    def seed(self) -> Any:
        return self.config.get("seed", self.metrics.get("seed"))

    @property
    def training_flops(self) -> float | None:
        """FLOPs of all its training steps: those of a token times the tokens trained on."""
        factors = [self.figure("flops_per_token"), self.figure("steps")]
        for section, key in (
            ("data", "batch_size"),
            ("data", "block_size"),
            ("trainer", "accumulate_grad_batches"),
        ):
            values = self.config.get(section)
            factors.append(number(values.get(key)) if isinstance(values, dict) else None)
        product = 1.0
        for factor in factors:
            if factor is None:
                return None
            product *= factor
        return product


def is_run(path: Path) -> bool:
    """Whether `path` is a run directory, in whatever state."""
    with contextlib.suppress(OSError):
        return (path / "status.json").is_file() or (path / "metrics.json").is_file()
    return False


def read_run(path: Path) -> RunRecord:
    """What can be read of the run at `path`."""
    run, damaged = RunRecord(path), []

    def read(name: str, parse: Callable[[str], Any]) -> dict[str, Any]:
        try:
            content = parse((path / name).read_text(encoding="utf-8"))
            if isinstance(content, dict):
                return content
        except FileNotFoundError:
            damaged.append(f"{name} is missing")
            return {}
        except (OSError, ValueError, yaml.YAMLError, RecursionError):
            pass
        damaged.append(f"{name} is damaged")
        return {}

    run.metrics = read("metrics.json", json.loads)
    run.config = read(".hydra/config.yaml", _yaml)
    settings = read(".hydra/hydra.yaml", _yaml)
    run.choices, run.overrides = _choices(settings), _overrides(settings)
    run.state, run.reason = _status(path)
    try:
        if run.metrics or run.config:
            run.monitor = Monitor.of(run.metrics or run.config)
    except UserError as mistake:
        damaged.append(str(mistake))
    if run.metrics:  # written last: its presence means "finished"
        run.state = "finished"
        if run.monitor and run.score is None:
            damaged.append(f"metrics.json has no {'score' if 'monitor' in run.metrics else 'val_loss'}")
    elif run.state != "finished" and "metrics.json is missing" in damaged:
        damaged.remove("metrics.json is missing")  # as it should be
    try:
        names = {monitor.name for monitor in (run.monitor or Monitor(), BETWEEN_TOKENIZERS)}
        for name, curve in read_curves(path, names).items():
            if points := [(step, value) for step, value in zip(*curve, strict=True) if isfinite(value)]:
                run.lasts[name] = points[-1]
    except FileNotFoundError:
        pass  # it has not come so far
    except (OSError, ValueError, csv.Error):
        damaged.append("history.csv is damaged")
    run.reason = "; ".join(dict.fromkeys([*([run.reason] if run.reason else []), *damaged]))
    return run


def read_finished(path: str | Path) -> RunRecord:
    """The finished run at `path`.

    Raises:
        UserError: it is not finished, or damaged.
    """
    run = read_run(Path(path))
    if not run.metrics:
        raise UserError(f"{path} is not a finished run: it has no metrics.json that can be read")
    if not run.finished or run.reason:
        raise UserError(f"{path} is not a finished run: {run.reason or run.state}")
    return run


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


def _status(path: Path) -> tuple[str, str]:
    try:
        status = RunDirectory(path).read_status()
        reason = status.get("reason")
        if status["state"] in STATES:
            return status["state"], " ".join(str(reason or "").split())
    except (OSError, ValueError, TypeError, AttributeError, KeyError):
        pass
    return "failed", "status.json is missing or damaged"


def _yaml(text: str) -> Any:
    return migrate(yaml.load(text, _LOADER))


def _inner(content: Any, *keys: str) -> Any:
    for key in keys:
        content = content.get(key) if isinstance(content, dict) else None
    return content


def _choices(settings: dict[str, Any]) -> dict[str, str | None]:
    choices = _inner(settings, "hydra", "runtime", "choices")
    choices = choices if isinstance(choices, dict) else {}
    return {migrate_key(str(group)): None if choice is None else str(choice) for group, choice in choices.items()}


def _overrides(settings: dict[str, Any]) -> list[str]:
    words = _inner(settings, "hydra", "overrides", "task")
    return [migrate_override(str(word)) for word in words] if isinstance(words, list) else []
