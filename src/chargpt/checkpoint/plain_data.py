"""Checks that a config from an untrusted file is plain data, without objects or interpolations."""

from typing import Any


def find_non_plain(value: Any, path: str) -> str:
    """Describes the first value that is not plain data; returns "" if there is none.

    An interpolation is not plain data, since resolving it can read the environment, for example. Saved configs have
    their interpolations resolved.

    Args:
        path: the name of `value` in the description.
    """
    try:
        return _search(value, path)
    except RecursionError:
        return f"{path} is nested too deeply"


def _search(value: Any, path: str) -> str:
    if isinstance(value, dict):
        if invalid := [key for key in value if not isinstance(key, str)]:
            return f"{path} has the key {invalid[0]!r}, which is not a string"
        return next((problem for key, item in value.items() if (problem := _search(item, f"{path}.{key}"))), "")
    if isinstance(value, list):
        return next((problem for i, item in enumerate(value) if (problem := _search(item, f"{path}[{i}]"))), "")
    if not isinstance(value, str | int | float | None):
        return f"{path} is a {type(value).__name__}, not plain data"
    if isinstance(value, str) and "${" in value and path != "tokenizer.characters":
        return f"{path}={value!r} is an interpolation, not a value"
    return ""
