"""Tables and figures in a README, put between marks by the command that measured them."""

import re
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev

from chargpt.errors import UserError


def table(rows: Sequence[dict[str, str]]) -> str:
    """Rows of the same keys as a Markdown table, the keys its header."""
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(list(row.values()) for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def mean_and_spread(values: Sequence[float], digits: int = 3) -> str:
    """`1.752 ± 0.004`: the mean, and the standard deviation where there is one."""
    spread = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{mean(values):.{digits}f}{spread}"


def put(file: Path, mark: str, content: str) -> None:
    """Replaces what stands between `<!-- mark -->` and `<!-- /mark -->`. Raises `UserError` without such marks."""
    text = file.read_text()
    marks = re.compile(rf"(<!-- {mark} -->\n).*?(<!-- /{mark} -->)", re.DOTALL)
    if not marks.search(text):
        raise UserError(f"{file} has no place for it: write <!-- {mark} --> and <!-- /{mark} --> on lines of their own")
    file.write_text(marks.sub(lambda found: found[1] + content + found[2], text))
