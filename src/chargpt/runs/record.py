"""Reads the record of a run, in any state, from its directory. Damaged files are listed in its `reason`."""

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
from chargpt.runs.score import BETWEEN_TOKENIZERS, Monitor, finite_float, score_of

# The C parser reads a sweep of a thousand runs in a second; OmegaConf's loader takes half a minute.
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass
class RunRecord:
    """The content of one run directory.

    Attributes:
        state: one of `STATES`.
        reason: why it is not finished, or which files are damaged; one line, or empty.
        metrics: metrics.json; empty if it is missing.
        config: the resolved config; empty if it cannot be read.
        choices: config group -> selected option.
        overrides: the overrides of its command line.
        monitor: the metric by which the run is compared; None if neither its metrics nor its config can be read.
        last_values: the last step and value in history.csv of the monitored metric and of bits per character, by name.
    """

    path: Path
    state: str = "failed"
    reason: str = ""
    metrics: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    choices: dict[str, str | None] = field(default_factory=dict)
    overrides: list[str] = field(default_factory=list)
    monitor: Monitor | None = None
    last_values: dict[str, tuple[int, float]] = field(default_factory=dict)

    @property
    def overridden(self) -> frozenset[str]:
        """The keys and groups that its command line overrides."""
        return frozenset(override.partition("=")[0].lstrip("+~") for override in self.overrides)

    @property
    def sample(self) -> str:
        return (self.path / "sample.txt").read_text()

    def curve(self, name: str) -> tuple[list[int], list[float]]:
        """Steps and values of a column of history.csv, without its empty cells."""
        return read_curves(self.path, [name])[name]

    def metric(self, name: str) -> float | None:
        """A number of metrics.json; None if it has no finite value."""
        return finite_float(self.metrics.get(name))

    @property
    def score(self) -> float | None:
        """The value of the monitored metric."""
        return score_of(self.metrics, self.monitor) if self.monitor else None

    @property
    def partial_validation(self) -> bool:
        """Whether its score is that of a part of the validation split."""
        return self.metrics.get("partial_validation") is True

    @property
    def finished(self) -> bool:
        return self.state == "finished" and self.score is not None

    @property
    def tokenizer(self) -> Any:
        """The settings of its tokenizer; None if the config has none."""
        return _inner(self.config, "data", "tokenizer")

    @property
    def seed(self) -> Any:
        return self.config.get("seed", self.metrics.get("seed"))

    @property
    def training_flops(self) -> float | None:
        """FLOPs of all its training steps: FLOPs per token times the number of training tokens."""
        factors = [self.metric("flops_per_token"), self.metric("steps")]
        for section, key in (
            ("data", "batch_size"),
            ("data", "block_size"),
            ("trainer", "accumulate_grad_batches"),
        ):
            values = self.config.get(section)
            factors.append(finite_float(values.get(key)) if isinstance(values, dict) else None)
        product = 1.0
        for factor in factors:
            if factor is None:
                return None
            product *= factor
        return product


def is_run(path: Path) -> bool:
    """Whether `path` is a run directory, in any state."""
    with contextlib.suppress(OSError):
        return (path / "status.json").is_file() or (path / "metrics.json").is_file()
    return False


def read_run(path: Path) -> RunRecord:
    """Reads the run at `path`, as far as its files are readable."""
    run, problems = RunRecord(path), []

    def read(name: str, parse: Callable[[str], Any]) -> dict[str, Any]:
        try:
            content = parse((path / name).read_text(encoding="utf-8"))
            if isinstance(content, dict):
                return content
        except FileNotFoundError:
            problems.append(f"{name} is missing")
            return {}
        except (OSError, ValueError, yaml.YAMLError, RecursionError):
            pass
        problems.append(f"{name} is damaged")
        return {}

    run.metrics = read("metrics.json", json.loads)
    run.config = read(".hydra/config.yaml", _yaml)
    settings = read(".hydra/hydra.yaml", _yaml)
    run.choices, run.overrides = _choices(settings), _overrides(settings)
    run.state, run.reason = _status(path)
    try:
        if run.metrics or run.config:
            run.monitor = Monitor.of(run.metrics or run.config)
    except UserError as error:
        problems.append(str(error))
    if run.metrics:  # metrics.json is written last: it marks a finished run
        run.state = "finished"
        if "val_loss" in run.metrics and run.metrics["val_loss"] is None:
            problems.append("no validation (trainer.limit_val_batches=0)")
        elif run.monitor and run.score is None:
            problems.append(f"metrics.json has no {'score' if 'monitor' in run.metrics else 'val_loss'}")
    elif run.state != "finished" and "metrics.json is missing" in problems:
        problems.remove("metrics.json is missing")  # as expected
    try:
        names = {monitor.name for monitor in (run.monitor or Monitor(), BETWEEN_TOKENIZERS)}
        for name, curve in read_curves(path, names).items():
            if points := [(step, value) for step, value in zip(*curve, strict=True) if isfinite(value)]:
                run.last_values[name] = points[-1]
    except FileNotFoundError:
        pass  # not yet written
    except (OSError, ValueError, csv.Error):
        problems.append("history.csv is damaged")
    run.reason = "; ".join(dict.fromkeys([*([run.reason] if run.reason else []), *problems]))
    return run


def read_finished(path: str | Path) -> RunRecord:
    """Reads the finished run at `path`.

    Raises:
        UserError: the run is not finished, or damaged.
    """
    run = read_run(Path(path))
    if not run.metrics:
        raise UserError(f"{path} is not a finished run: its metrics.json is missing or damaged")
    if not run.finished or run.reason:
        raise UserError(f"{path} is not a finished run: {run.reason or run.state}")
    return run


def read_curves(run: Path, names: Iterable[str]) -> dict[str, tuple[list[int], list[float]]]:
    """Steps and values of columns of a run's history.csv; an incomplete last line is skipped.

    Raises:
        OSError, csv.Error: the file is missing or not CSV.
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
    overrides = _inner(settings, "hydra", "overrides", "task")
    return [migrate_override(str(override)) for override in overrides] if isinstance(overrides, list) else []
