"""A case of the kit: one row of results.csv with its expected value."""

import operator
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
DATA = HERE / "data"  # ignored by git: the corpus and nanoGPT's model.py
OPERATORS = {"<=": operator.le, "<": operator.lt, ">=": operator.ge, ">": operator.gt, "==": operator.eq}


@dataclass(frozen=True)
class Case:
    """One row of results.csv.

    Attributes:
        expected: a comparison such as `<= 1e-4`, or the exact value; empty for a measurement.
        cuda: whether the case requires CUDA.
        dry: `expected` of a dry run, if it differs.
    """

    name: str
    metric: str
    unit: str = ""
    expected: str = ""
    cuda: bool = False
    dry: str | None = None

    def verdict(self, value: str, dry: bool) -> str:
        """`ok` or `failed`; empty for a measurement."""
        expected = self.dry if dry and self.dry is not None else self.expected
        if not expected:
            return ""
        operator_name, _, limit = expected.partition(" ")
        if operator_name not in OPERATORS:
            return "ok" if value == expected else "failed"
        try:
            return "ok" if OPERATORS[operator_name](float(value), float(limit)) else "failed"
        except ValueError:
            return "failed"


class Failure(Exception):
    """A failed case; the message is one line."""
