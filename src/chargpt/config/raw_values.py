"""Texts, paths and names on the command line: they are quoted, so that Hydra's grammar does not interpret them."""

import re
from collections.abc import Iterator
from enum import Enum
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException


class Raw(Enum):
    """How the value of a setting is read."""

    TEXT = "every character as it is typed"
    PATH = "a file of that name; otherwise null, a quoted string, and interpolations (${...}) keep their meaning"
    PATHS = "as PATH, and [one,another] is a list"
    NAME = "every character as it is typed, except for null, a quoted string, and interpolations"


# A setting that takes a text or a path belongs in this table. Under `-m`, paths and names that are separated by commas
# are swept.
RAW_SETTINGS = {
    "prompt": Raw.TEXT,
    "text": Raw.TEXT,
    "run": Raw.PATH,
    "runs": Raw.PATH,  # compare.py reads its lists
    "resume": Raw.PATH,
    "rerun": Raw.PATH,
    "file": Raw.PATH,
    "folder": Raw.PATH,
    "data.path": Raw.PATHS,
    "data.cache_dir": Raw.PATH,
    "name": Raw.NAME,
    "hydra.run.dir": Raw.NAME,
    "hydra.sweep.dir": Raw.NAME,
    "hydra.sweep.subdir": Raw.NAME,
}
_SWEEP_FUNCTION = re.compile(r"(choice|glob|interval|range|shuffle|sort|tag)\(.*\)", re.DOTALL)


def quote(override: str, sweep: bool = False) -> str:
    """Quotes the value of one of `RAW_SETTINGS`: `prompt=What, ho!` becomes `prompt='What, ho!'`.

    Args:
        sweep: whether a setting may have several values (`--multirun`).
    """
    key, equals, value = override.partition("=")
    raw = RAW_SETTINGS.get(key.lstrip("+"))
    if raw is None or not equals:
        return override
    if raw is Raw.TEXT:
        return f"{key}={quote_value(value)}"
    swept = sweep and not key.startswith("hydra.") and not _exists(value, raw)
    if swept and _SWEEP_FUNCTION.fullmatch(value):
        return override
    values = [item.strip() for item in _split(value, raw)] if swept else [value]
    return f"{key}={','.join(_quote(item, raw) for item in values)}"


def quote_value(text: str) -> str:
    """Quotes a string as one value of Hydra's grammar, without interpolations."""
    # In OmegaConf a backslash escapes an interpolation, and a backslash before an interpolation.
    return _quote_interpolated(re.sub(r"(\\*)\$\{", lambda match: match[1] * 2 + r"\${", text))


def _quote(value: str, raw: Raw) -> str:
    if _is_plain(value):  # so that the folders of sweeps keep their names
        return value
    if _exists(value, raw):
        return quote_value(value)
    if value in ("null", "???") or _is_quoted(value):
        return value
    if raw is Raw.PATHS and value.startswith("[") and value.endswith("]"):
        items = (item.strip() for item in _split(value[1:-1], raw))
        return f"[{','.join(_quote(item, raw) for item in items if item)}]"
    return _quote_interpolated(value)


def _quote_interpolated(text: str) -> str:
    escaped = re.sub(r"(\\+)(?='|\Z)", r"\1\1", text).replace("'", "\\'")
    return f"'{escaped}'"


def _is_plain(value: str) -> bool:
    """Whether Hydra's grammar reads the value as this text, and writes it without escapes for the jobs of a sweep."""
    if "${" in value or re.search(r"[\s\\]", value):
        return False
    try:
        return OverridesParser.create().parse_override(f"x={value}").value() == value
    except HydraException:
        return False


def _exists(value: str, raw: Raw) -> bool:
    if raw is Raw.NAME or not value:
        return False
    try:
        return Path(value).expanduser().exists()
    except (OSError, RuntimeError, ValueError):  # too long, an unknown user, a NUL character
        return False


def _is_quoted(value: str) -> bool:
    return len(value) > 1 and value[0] in "'\"" and value[-1] == value[0]


def _split(value: str, raw: Raw) -> Iterator[str]:
    """The parts between commas that are not within quotes, a list or an interpolation."""
    start, closing = 0, ""
    for i, character in enumerate(value):
        if closing:
            closing = "" if character == closing else closing
        elif character == ",":
            yield value[start:i]
            start = i + 1
        elif character == "{" and value[i - 1 : i] == "$":
            closing = "}"
        elif i == start and (character in "'\"" or (character == "[" and raw is Raw.PATHS)):
            closing = {"[": "]"}.get(character, character)
    yield value[start:]
