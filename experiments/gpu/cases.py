"""A case of the kit: one row of results.csv, and what is expected of it."""

import operator
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
DATA = HERE / "data"  # ignored: the corpus and nanoGPT's model.py
OPERATORS = {"<=": operator.le, "<": operator.lt, ">=": operator.ge, ">": operator.gt, "==": operator.eq}


@dataclass(frozen=True)
class Case:
    """One row of results.csv.

    Attributes:
        expected: `<= 1e-4` and the like, or a word that the value must be; empty for a measurement.
        cuda: whether it needs CUDA.
        dry: what is expected in a dry run, where that is something else.
    """

    name: str
    metric: str
    unit: str = ""
    expected: str = ""
    cuda: bool = False
    dry: str | None = None

    def decision(self, value: str, dry: bool) -> str:
        """`ok`, `failed`, or empty where nothing is expected."""
        expected = self.dry if dry and self.dry is not None else self.expected
        if not expected:
            return ""
        word, _, limit = expected.partition(" ")
        if word not in OPERATORS:
            return "ok" if value == expected else "failed"
        try:
            return "ok" if OPERATORS[word](float(value), float(limit)) else "failed"
        except ValueError:
            return "failed"


class Failure(Exception):
    """A case failed: one line."""
