"""Configs that others wrote are data: never orders to look something up, never objects."""

from typing import Any


def find_non_plain(value: Any, path: str) -> str:
    """Where something is not plain data, and what it is; empty if all is.

    An interpolation is an order to look something up, in the environment for one, and no data. What is saved has
    its interpolations resolved.

    Args:
        path: the name of `value` itself.
    """
    try:
        return _search(value, path)
    except RecursionError:
        return f"{path} has no bottom"


def _search(value: Any, path: str) -> str:
    if isinstance(value, dict):
        if odd := next((key for key in value if not isinstance(key, str)), None):
            return f"{path} has the key {odd!r}"
        return next((found for key, item in value.items() if (found := _search(item, f"{path}.{key}"))), "")
    if isinstance(value, list):
        return next((found for i, item in enumerate(value) if (found := _search(item, f"{path}[{i}]"))), "")
    if not isinstance(value, str | int | float | None):
        return f"{path} is a {type(value).__name__}"
    if isinstance(value, str) and "${" in value and path != "tokenizer.characters":
        return f"{path}={value!r} is to be looked up somewhere, and is no value"
    return ""
