"""Formats keys, values, FLOPs and paths for tables and figures."""

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from chargpt.sweeps.swept_params import ABSENT


def short_names(names: Iterable[str]) -> dict[str, str]:
    """Shortens dotted names, `model.n_layer` -> `n_layer`, as far as they remain distinct."""
    names = list(names)
    parts = {name: re.split(r"[./]", name.partition("@")[0]) for name in names}
    short = {}
    for name in names:
        own, length = parts[name], 1
        while length < len(own) and [p[-length:] for p in parts.values()].count(own[-length:]) > 1:
            length += 1
        separator = "/" if "/" in name else "."
        short[name] = separator.join(own[-length:])
    return short


def format_value(value: Any) -> str:
    """A value in the syntax of an override; floats with all digits."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    if isinstance(value, list | tuple):
        return f"[{','.join(map(format_value, value))}]"
    return repr(value) if isinstance(value, float) else str(value) if value is not ABSENT else ""


def key_text(value: Any) -> str:
    """Shortens a value of a key: a float to four digits, a `_target_` to the name of its class."""
    if isinstance(value, float):
        return f"{value:.4g}"
    text = format_value(value)
    return text.rsplit(".", 1)[-1] if text.startswith(("chargpt.", "torch.")) else text


def short_path(path: Path, folder: Path) -> str:
    """`path` relative to `folder`, with bytes that are not UTF-8 replaced."""
    return os.fsencode(os.path.relpath(path, folder)).decode("utf-8", "replace")


def flops_text(flops: float) -> str:
    """Formats FLOPs with two digits: `1.2e15`."""
    if not flops:
        return "0"  # a bigram model is a table lookup
    digits, _, power = f"{flops:.1e}".partition("e")
    return f"{digits}e{int(power)}"
