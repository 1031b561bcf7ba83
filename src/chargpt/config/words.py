"""The words of a command line in Hydra's grammar, and Hydra's answers in one line."""

import re

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from chargpt.errors import Mistake

# Texts and paths that people type without quotes: taken as they are, whatever signs they hold.
RAW = ("prompt", "text", "run", "runs", "resume", "rerun", "file", "folder", "data.path", "data.cache_dir")


def quote(override: str) -> str:
    """`prompt=What, ho!` as Hydra's grammar wants it: `prompt='What, ho!'`."""
    key, equals, value = override.partition("=")
    if key not in RAW or not equals or value[:1] in ("'", '"') or value in ("null", "???"):
        return override
    return f"{key}={quoted(value)}"


def quoted(text: str) -> str:
    """Any text as one value of Hydra's grammar."""
    escaped = re.sub(r"(\\+)(?='|$)", r"\1\1", text).replace("'", "\\'")
    return f"'{escaped}'"


def parse(override: str) -> Override:
    """One word of the command line.

    Raises:
        Mistake: Hydra's grammar has no such thing.
    """
    try:
        parsed = OverridesParser.create().parse_override(override)
        if not parsed.key_or_group:
            raise HydraException("a value without a key")
        return parsed
    except HydraException as error:
        hint = "" if "=" in override else " A setting is given as KEY=VALUE."
        raise Mistake(
            f"{override!r} is not understood.{hint} Put a value with special signs in two pairs of quotes: "
            f"'KEY=\"some, value\"'"
        ) from error


def one_line(error: Exception) -> str:
    """Hydra's and OmegaConf's errors, shortened to what a person needs."""
    causes = [error]
    while causes[-1].__cause__ is not None:
        causes.append(causes[-1].__cause__)
    lines = [line.strip() for cause in causes for line in str(cause).splitlines()]
    noise = ("To append", "full_key:", "object_type", "Set the env", "reference_type")
    kept = [line for line in dict.fromkeys(lines) if line and not line.startswith(noise)]
    message = " ".join(kept[:3])
    place = next((m[1] for line in lines if (m := re.match(r"full_key: (.+)", line))), None)
    return message if place is None or place in message else f"{message} (in {place})"
