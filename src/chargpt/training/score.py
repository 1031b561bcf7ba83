"""The figure by which checkpoints, runs and trials are compared: its name, and whether less of it is better."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf
from typing import Any

from chargpt.errors import Mistake

MODES = ("min", "max")


@dataclass(frozen=True)
class Monitor:
    """A figure of `metrics.json` and of each validation.

    Attributes:
        name: as in `metrics.json` and `history.csv`, such as `val_loss` or `val_bpc`.
        mode: `min` where less is better, `max` where more is.

    Raises:
        Mistake: `mode` is neither.
    """

    name: str = "val_loss"
    mode: str = "min"

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise Mistake(f"mode={self.mode}: it is one of {', '.join(MODES)}")

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> "Monitor":
        """The monitor that a config or a `metrics.json` names; `val_loss` where it names none (before 0.3)."""
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


# Nats per token favour small vocabularies, so runs with different tokenizers are compared by bits per character.
BETWEEN_TOKENIZERS = Monitor("val_bpc", "min")
