"""Parses overrides with Hydra's grammar and checks them against the config.

Hydra itself reports a mistyped key in ten lines and accepts values of any type. Here each error is one line, with the
nearest valid names.
"""

import contextlib
import difflib
import re
from collections.abc import Iterable
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override, QuotedString
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from chargpt.checkpoint.migrations import GROUPS
from chargpt.config.schema import Groups, Schema, is_interpolation
from chargpt.config.synonyms import synonym
from chargpt.errors import UserError
from chargpt.invocation import is_called_from_python

SUBMITIT_CONFIG = "hydra/launcher/submitit_"  # the configs of the optional package hydra-submitit-launcher
# The beginnings of settings that exist only with a certain option of a group.
REQUIRED_OPTION = {"data.path": "data=text_file", "callbacks.early_stopping.": "callbacks=early_stopping"}
# Groups without a default. Their options may be typed with a plus sign, as before 0.3.
OPTIONAL_GROUPS = ("lecture", "grid", "speedrun", "experiment", "debug")
GLOBAL_PACKAGE_ADVICE = "its first line must be `# @package _global_`: then its settings are those of the run"
# Groups of which several options can be selected: logger=[csv,wandb].
LIST_GROUPS = ("callbacks", "logger")


def without_plus(override: str) -> str:
    """An option of an optional group without its plus sign, which Hydra refuses: `+lecture=head` -> `lecture=head`."""
    group, _, _ = override.lstrip("+").partition("=")
    return override.lstrip("+") if group in OPTIONAL_GROUPS else override


def parse(override: str) -> Override:
    """Parses one override.

    Raises:
        UserError: it does not follow Hydra's grammar.
    """
    try:
        parsed = OverridesParser.create().parse_override(override)
        if not parsed.key_or_group:
            raise HydraException("a value without a key")
        return parsed
    except HydraException as error:
        hint = "" if "=" in override else " Settings have the form KEY=VALUE."
        raise UserError(
            f"{override!r} cannot be parsed.{hint} A value with special characters requires two pairs of quotes: "
            f"'KEY=\"some, value\"'"
        ) from error


def short_error(error: Exception) -> str:
    """The message of a Hydra or OmegaConf error in one line, without details for developers."""
    causes: list[BaseException] = [error]
    while causes[-1].__cause__ is not None:
        causes.append(causes[-1].__cause__)
    lines = [line.strip() for cause in causes for line in str(cause).splitlines()]
    details = ("To append", "full_key:", "object_type", "Set the env", "reference_type")
    kept = [line for line in dict.fromkeys(lines) if line and not line.startswith(details)]
    message = " ".join(kept[:3])
    if f"Could not load '{SUBMITIT_CONFIG}" in message:
        return "hydra/launcher=slurm requires Submitit: pip install hydra-submitit-launcher"
    if unknown := re.match(r"Could not override '([\w/]+)'\. No match in the defaults list", message):
        return f"{unknown[1]} is not a setting of this command: --help lists its settings"
    if re.search(rf"Could not override '\w+@({'|'.join(OPTIONAL_GROUPS)})\.", message):
        return f"{message.partition(':')[0]}: {GLOBAL_PACKAGE_ADVICE}"
    if "'model.block_size' not found" in message:
        return "model.block_size is missing: add block_size: 64 to the config of the model"
    if old := next((old for old in GROUPS if old in message), None):
        message = f"{message} {old} is now called {GROUPS[old]}."
    key = next((m[1] for line in lines if (m := re.match(r"full_key: (.+)", line))), None)
    return message if key is None or key in message else f"{message} (in {key})"


def check_options(parsed: list[Override], groups: Groups, sweep: bool) -> list[str]:
    """Checks the overrides that select an option of a config group.

    Args:
        sweep: whether a group may have several options (`--multirun`).

    Returns:
        These overrides, with the first option where there are several.

    Raises:
        UserError: an option that does not exist, or the removal of a setting that is required.
    """
    for override in parsed:
        _check_delete(override)
    selected = [override for override in parsed if _is_option(override, groups)]
    for override in selected:
        _check_option(override, groups, sweep)
    return [line for line in map(_first_option, selected) if line]


def check_values(parsed: list[Override], schema: Schema, sweep: bool) -> None:
    """Raises `UserError` for the first setting that does not exist or has a value of a wrong type."""
    for override in parsed:
        if not _is_option(override, schema.groups):
            _check_value(override, schema, sweep)


def check_interpolated(parsed: list[Override], composed: DictConfig, schema: Schema) -> None:
    """Checks the types of interpolated values, which require the composed config."""
    for override in parsed:
        key = override.key_or_group
        if key not in schema.keys or override.is_delete() or not any(map(is_interpolation, _values(override))):
            continue
        with contextlib.suppress(OmegaConfBaseException):  # reported where the value is used
            value = OmegaConf.select(composed, key)
            schema.check_type(key, OmegaConf.to_container(value) if OmegaConf.is_config(value) else value)


def missing_values(config: object, path: str = "") -> set[str]:
    """The settings of a plain config without a value (`???`), which the user must give."""
    if isinstance(config, dict):
        return set().union(*(missing_values(v, f"{path}.{k}".lstrip(".")) for k, v in config.items()))
    return {path} if config == "???" else set()


def _is_option(override: Override, groups: Groups) -> bool:
    # `data=text_file` selects an option; `trainer={...}` and `~callbacks.samples` do not.
    group, value = override.key_or_group, override.value()
    is_setting = "/" not in group and group not in OPTIONAL_GROUPS and isinstance(value, dict | list)
    return group in groups and (not is_setting or (group in LIST_GROUPS and isinstance(value, list)))


def _values(override: Override) -> Iterable[Any]:
    value = override.value()
    values = [value]
    if override.is_sweep_override():
        values = value.list if isinstance(value, ChoiceSweep) else []
    return [value.text if isinstance(value, QuotedString) else value for value in values]


def _sweep_hint() -> str:
    return "chargpt.sweep" if is_called_from_python() else "train.py -m"


def _check_no_sweep(override: Override, sweep: bool) -> None:
    if override.is_sweep_override() and not sweep:
        raise UserError(
            f"{override.input_line} gives {override.key_or_group} more than one value: "
            f"use {_sweep_hint()} for a sweep, or quote it if it is one value"
        )


def _check_delete(override: Override) -> None:
    key = override.key_or_group
    if override.is_delete() and not key.startswith(("callbacks.", "logger.", "hydra")):
        raise UserError(
            f"{override.input_line}: {key} is required. Only entries of callbacks and logger can be removed, for "
            f"example ~callbacks.samples"
        )


def _check_option(override: Override, groups: Groups, sweep: bool) -> None:
    _check_no_sweep(override, sweep)
    group = override.key_or_group
    if group == "hydra":
        raise UserError(
            f"{override.input_line}: Hydra's settings must be set one by one, for example hydra.run.dir=FOLDER"
        )
    options = groups.options(group)
    checked = not group.startswith("hydra") or group in ("hydra/launcher", "hydra/sweeper")
    for value in _values(override):
        several = isinstance(value, list) and group in LIST_GROUPS and value
        for name in value if several else [value]:
            option = "null" if name is None else str(name)
            if isinstance(name, dict | list) or (option not in options and checked and not override.is_delete()):
                hint = f": use {group}=none." if group in LIST_GROUPS and not name else _nearest(option, options)
                raise UserError(
                    f"{group}={option}: there is no such option{hint} The options of {group} are {', '.join(options)}"
                )


def _first_option(override: Override) -> str:
    line = override.input_line or ""
    if override.is_sweep_override():
        value = next(iter(_values(override)), None)
        sign = "+" if override.is_add() else "++" if override.is_force_add() else ""
        line = f"{sign}{override.key_or_group}={value}" if value is not None else ""
    return line


def _check_value(override: Override, schema: Schema, sweep: bool) -> None:
    key = override.key_or_group
    if key.split(".")[0].split("/")[0] == "hydra":
        if key.startswith(("hydra.run.", "hydra.sweep.")) and "resume" not in schema.keys:
            raise UserError(f"{key} has no effect here: only train.py creates a run directory. run=RUN names a run")
        return
    _check_no_sweep(override, sweep)
    if key not in schema.keys:
        if override.is_add() or override.is_force_add():
            schema.check_parents(key)
            return
        if option := next((option for start, option in REQUIRED_OPTION.items() if key.startswith(start)), None):
            raise UserError(f"{key} requires {option}: add {option}")
        adds = f"+{key}=... adds an argument that its class has, and " if key.rpartition(".")[0] in schema.keys else ""
        other = synonym(key, schema.keys)
        near = f": it is {other} here." if other else _nearest(key, schema.keys)
        raise UserError(
            f"{key} is not a setting of this command{near} {adds}"
            f"--cfg job prints all settings{'' if '/' not in key else ', --help all groups'}"
        )
    if override.is_delete():
        return
    for value in _values(override):
        schema.check_type(key, value)


def _nearest(name: str, known: Iterable[str]) -> str:
    known = [k for k in known if not k.endswith(("_target_", "_partial_"))]
    last_part = name.replace("/", ".").rsplit(".", 1)[-1]
    same_last_part = [k for k in known if k.replace("/", ".").rsplit(".", 1)[-1] == last_part]
    near = same_last_part or difflib.get_close_matches(name, known, n=3, cutoff=0.65)
    if not near:
        last_parts = {k.rsplit(".", 1)[-1]: k for k in known}
        near = [last_parts[m] for m in difflib.get_close_matches(last_part, last_parts, n=2, cutoff=0.7)]
    return f"; did you mean {' or '.join(near[:3])}?" if near else "."
