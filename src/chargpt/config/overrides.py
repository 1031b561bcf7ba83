"""The words of a command line in Hydra's grammar, and their check against the config.

Hydra alone reports a mistyped key in ten lines and accepts a value of any type; here each mistake is one line with
the nearest valid name.
"""

import contextlib
import difflib
import re
from collections.abc import Iterable
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, QuotedString, Sweep
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from chargpt.checkpoint.migrations import GROUPS
from chargpt.config.schema import Groups, Schema, is_interpolation
from chargpt.errors import UserError

# Texts and paths that people type without quotes: taken as they are, whatever signs they hold.
RAW_KEYS = ("prompt", "text", "run", "runs", "resume", "rerun", "file", "folder", "data.path", "data.cache_dir")
# Settings that only some choice of a group has.
ELSEWHERE = {"data.path": "data=text_file"}
# Groups that no default names: a choice in them is added.
OPTIONAL_GROUPS = ("lecture", "grid", "speedrun")


def quote(override: str) -> str:
    """`prompt=What, ho!` as Hydra's grammar wants it: `prompt='What, ho!'`."""
    key, equals, value = override.partition("=")
    if key not in RAW_KEYS or not equals or value[:1] in ("'", '"') or value in ("null", "???"):
        return override
    return f"{key}={quote_value(value)}"


def quote_value(text: str) -> str:
    """Any text as one value of Hydra's grammar."""
    escaped = re.sub(r"(\\+)(?='|$)", r"\1\1", text).replace("'", "\\'")
    return f"'{escaped}'"


def parse(override: str) -> Override:
    """One word of the command line.

    Raises:
        UserError: Hydra's grammar has no such thing.
    """
    try:
        parsed = OverridesParser.create().parse_override(override)
        if not parsed.key_or_group:
            raise HydraException("a value without a key")
        return parsed
    except HydraException as error:
        hint = "" if "=" in override else " A setting is given as KEY=VALUE."
        raise UserError(
            f"{override!r} is not understood.{hint} Put a value with special signs in two pairs of quotes: "
            f"'KEY=\"some, value\"'"
        ) from error


def short_error(error: Exception) -> str:
    """Hydra's and OmegaConf's errors, shortened to what a person needs."""
    causes = [error]
    while causes[-1].__cause__ is not None:
        causes.append(causes[-1].__cause__)
    lines = [line.strip() for cause in causes for line in str(cause).splitlines()]
    noise = ("To append", "full_key:", "object_type", "Set the env", "reference_type")
    kept = [line for line in dict.fromkeys(lines) if line and not line.startswith(noise)]
    message = " ".join(kept[:3])
    if renamed := next((old for old in GROUPS if old in message), None):
        message = f"{message} {renamed} is now called {GROUPS[renamed]}."
    place = next((m[1] for line in lines if (m := re.match(r"full_key: (.+)", line))), None)
    return message if place is None or place in message else f"{message} (in {place})"


def check_choices(parsed: list[Override], groups: Groups, sweep: bool) -> list[str]:
    """Checks the choices of groups.

    Args:
        sweep: whether several values for one setting are allowed (`--multirun`).

    Returns:
        The overrides that make them, the first where there are several.

    Raises:
        UserError: a choice that there is not, or a part that cannot be left out.
    """
    for override in parsed:
        _check_delete(override)
    chosen = [o for o in parsed if _is_choice(o, groups)]
    for override in chosen:
        _check_choice(override, groups, sweep)
    return [line for line in map(_first, chosen) if line]


def check_values(parsed: list[Override], schema: Schema, sweep: bool) -> None:
    """Raises `UserError` at the first setting that is not there, or does not take its value."""
    for override in parsed:
        if not _is_choice(override, schema.groups):
            _check_value(override, schema, sweep)


def check_interpolated(parsed: list[Override], composed: DictConfig, schema: Schema) -> None:
    """Checks values that are those of other settings: only the whole config says what they are."""
    for override in parsed:
        key = override.key_or_group
        if key not in schema.keys or override.is_delete() or not any(map(is_interpolation, _values(override))):
            continue
        with contextlib.suppress(OmegaConfBaseException):  # what leads nowhere is reported where it is needed
            value = OmegaConf.select(composed, key)
            schema.check_type(key, OmegaConf.to_container(value) if OmegaConf.is_config(value) else value)


def missing_values(config: object, path: str = "") -> set[str]:
    """The settings of a plain config that have no value (`???`): the user must give them."""
    if isinstance(config, dict):
        return set().union(*(missing_values(v, f"{path}.{k}".lstrip(".")) for k, v in config.items()))
    return {path} if config == "???" else set()


def _is_choice(override: Override, groups: Groups) -> bool:
    # `data=text_file` is a choice; `trainer={...}` and `~callbacks.samples` are not.
    group = override.key_or_group
    is_setting = "/" not in group and group not in OPTIONAL_GROUPS and isinstance(override.value(), dict | list)
    return group in groups and not is_setting


def _values(override: Override) -> Iterable[Any]:
    value = override.value()
    given = [value]
    if override.is_sweep_override():
        given = value.list if isinstance(value, Sweep) and hasattr(value, "list") else []
    return [one.text if isinstance(one, QuotedString) else one for one in given]


def _no_sweep(override: Override, sweep: bool) -> None:
    if override.is_sweep_override() and not sweep:
        raise UserError(
            f"{override.input_line} gives {override.key_or_group} more than one value: add -m to run them all, "
            f"or quote it if it is one value"
        )


def _check_delete(override: Override) -> None:
    key = override.key_or_group
    if override.is_delete() and not key.startswith(("callbacks.", "logger.", "hydra")):
        raise UserError(
            f"{override.input_line}: a run needs {key}. Only parts of callbacks and logger can be left out, for "
            f"example ~callbacks.samples"
        )


def _check_choice(override: Override, groups: Groups, sweep: bool) -> None:
    _no_sweep(override, sweep)
    group = override.key_or_group
    if group in OPTIONAL_GROUPS and not (override.is_add() or override.is_delete()):
        raise UserError(f"{override.input_line}: a choice of {group} is added, with a plus: +{override.input_line}")
    if group == "hydra":
        raise UserError(
            f"{override.input_line}: Hydra's settings are given one by one, for example hydra.run.dir=FOLDER"
        )
    options = groups.options(group)
    for value in _values(override):
        choice = "null" if value is None else str(value)
        ours = not group.startswith("hydra") or group in ("hydra/launcher", "hydra/sweeper")
        if isinstance(value, dict | list) or (choice not in options and ours and not override.is_delete()):
            raise UserError(
                f"{group}={choice}: there is no such choice{_nearest(choice, options)} "
                f"{group} is one of {', '.join(options)}"
            )


def _first(override: Override) -> str:
    line = override.input_line
    if override.is_sweep_override():
        value = next(iter(_values(override)), None)
        sign = "+" if override.is_add() else "++" if override.is_force_add() else ""
        line = f"{sign}{override.key_or_group}={value}" if value is not None else ""
    return line


def _check_value(override: Override, schema: Schema, sweep: bool) -> None:
    key = override.key_or_group
    if key.split(".")[0].split("/")[0] == "hydra":
        return
    _no_sweep(override, sweep)
    if key not in schema.keys:
        if override.is_add() or override.is_force_add():
            schema.check_parents(key)
            return
        if key in ELSEWHERE:
            raise UserError(f"{key} is a setting of {ELSEWHERE[key]}: add {ELSEWHERE[key]} before it")
        raise UserError(
            f"{key} is not a setting here{_nearest(key, schema.keys)} "
            f"All settings and their values: --cfg job{'' if '/' not in key else '; all groups: --help'}"
        )
    if override.is_delete():
        return
    for given in _values(override):
        schema.check_type(key, given)


def _nearest(name: str, known: Iterable[str]) -> str:
    known = [k for k in known if not k.endswith(("_target_", "_partial_"))]
    by_tail = [k for k in known if k.replace("/", ".").rsplit(".", 1)[-1] == name]
    near = by_tail or difflib.get_close_matches(name, known, n=3, cutoff=0.65)
    if not near:
        tails = {k.rsplit(".", 1)[-1]: k for k in known}
        tail = name.replace("/", ".").rsplit(".", 1)[-1]
        near = [tails[m] for m in difflib.get_close_matches(tail, tails, n=2, cutoff=0.7)]
    return f"; did you mean {' or '.join(near[:3])}?" if near else "."
