"""How keys, values, figures and paths are written: as one types them, and no longer than need be."""

import os
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from chargpt.sweeps.swept_params import ABSENT


def short_names(names: Iterable[str]) -> dict[str, str]:
    """`model.n_layer` -> `n_layer`, with as much before it as tells it from the others."""
    names = list(names)
    parts = {name: re.split(r"[./]", name.partition("@")[0]) for name in names}
    short = {}
    for name in names:
        for length in range(1, len(parts[name]) + 1):
            tails = Counter(tuple(p[-length:]) for p in parts.values())
            if tails[tuple(parts[name][-length:])] == 1:
                break
        separator = "/" if "/" in name else "."
        short[name] = separator.join(parts[name][-length:])
    return short


def shown_value(value: Any) -> str:
    """A value as one would type it; floats in full."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    if isinstance(value, list | tuple):
        return f"[{','.join(map(shown_value, value))}]"
    return repr(value) if isinstance(value, float) else str(value) if value is not ABSENT else ""


def key_text(value: Any) -> str:
    """A value of a key, short: four digits of a float, and the class of a target."""
    if isinstance(value, float):
        return f"{value:.4g}"
    text = shown_value(value)
    return text.rsplit(".", 1)[-1] if text.startswith(("chargpt.", "torch.")) else text


def short_path(path: Path, folder: Path) -> str:
    """`path` as seen from `folder`, with signs that can be printed."""
    return os.fsencode(os.path.relpath(path, folder)).decode("utf-8", "replace")


def flops_text(flops: float) -> str:
    """`1.2e15`."""
    if not flops:
        return "0"  # a table is looked up, without a product
    digits, _, power = f"{flops:.1e}".partition("e")
    return f"{digits}e{int(power)}"
