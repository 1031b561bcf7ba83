"""The monitored metric that ranks checkpoints, runs and trials: its name, and whether it is minimized or maximized."""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from math import inf, isfinite
from typing import Any

from chargpt.errors import UserError

MODES = ("min", "max")
PER_TOKEN = ("val_loss", "val_perplexity")


@dataclass(frozen=True)
class Monitor:
    """A metric of `metrics.json` and of each validation.

    Attributes:
        name: as in `metrics.json` and `history.csv`, such as `val_loss` or `val_bpc`.
        mode: `min` if lower is better, `max` if higher is better.

    Raises:
        UserError: `mode` is neither `min` nor `max`.
    """

    name: str = "val_loss"
    mode: str = "min"

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise UserError(f"mode={self.mode}: it must be one of {', '.join(MODES)}")

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> "Monitor":
        """The monitor of a config or a `metrics.json`; `val_loss` if it has none (before 0.3)."""
        return cls(str(settings.get("monitor", cls.name)), str(settings.get("mode", cls.mode)))

    @property
    def worst(self) -> float:
        return inf if self.mode == "min" else -inf

    def is_better(self, score: float, than: float) -> bool:
        """Whether `score` is strictly better; a NaN never is."""
        return score < than if self.mode == "min" else score > than

    def sort_key(self, score: float | None) -> float:
        """A key that sorts the best score first, and None last."""
        return inf if score is None else score if self.mode == "min" else -score

    @property
    def label(self) -> str:
        """The name of the metric in messages and tables."""
        return "validation loss" if self.name == "val_loss" else self.name

    @property
    def between_tokenizers(self) -> "Monitor":
        """The monitor that ranks runs of this monitor whose tokenizers differ."""
        return BETWEEN_TOKENIZERS if self.name in PER_TOKEN else self


# Nats per token favor small vocabularies, so runs with different tokenizers are compared by bits per character.
BETWEEN_TOKENIZERS = Monitor("val_bpc", "min")


def score_of(metrics: Mapping[str, Any], monitor: Monitor) -> float | None:
    """The value by which `monitor` ranks a run; None if the run has no such number.

    Args:
        metrics: metrics.json of the run.
    """
    if "score" in metrics and monitor == Monitor.of(metrics):
        return finite_float(metrics["score"])
    return finite_float(metrics.get(monitor.name))


def finite_float(value: Any) -> float | None:
    """A value of a JSON file as a float; None if it is not a finite number."""
    # In Python a bool is an int, JSON may contain NaN, and an integer may be too large for a float.
    if isinstance(value, int | float) and not isinstance(value, bool):
        with contextlib.suppress(OverflowError):
            return float(value) if isfinite(value) else None
    return None
