"""Texts that come from files and are printed."""

import re

_CONTROL = re.compile(r"[^\n\x20-\x7e\xa0-\U0010ffff]")


def without_controls(text: str) -> str:
    """The text without characters that change the state of a terminal; line breaks are kept."""
    return _CONTROL.sub(" ", text)
