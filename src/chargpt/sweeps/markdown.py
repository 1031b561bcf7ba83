"""Markdown tables, and their replacement between markers in a README."""

import re
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev

from chargpt.errors import UserError


def table(rows: Sequence[dict[str, str]]) -> str:
    """A Markdown table of rows with the same keys; the keys are the header."""
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(list(row.values()) for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def mean_and_spread(values: Sequence[float], digits: int = 3) -> str:
    """`1.752 ± 0.004`: the mean and, of several values, the standard deviation."""
    spread = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{mean(values):.{digits}f}{spread}"


def put(file: Path, mark: str, content: str) -> None:
    """Replaces the text between `<!-- mark -->` and `<!-- /mark -->`. Raises `UserError` if a marker is missing."""
    text = file.read_text()
    section = re.compile(rf"(<!-- {mark} -->\n).*?(<!-- /{mark} -->)", re.DOTALL)
    if not section.search(text):
        raise UserError(f"{file} has no markers: add <!-- {mark} --> and <!-- /{mark} --> on separate lines")
    file.write_text(section.sub(lambda match: match[1] + content + match[2], text))
