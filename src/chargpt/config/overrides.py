"""Checks the words of the command line against the config before anything is composed, built or imported.

Hydra alone tells a mistyped key in ten lines and lets a value of any type through; here each mistake is one
line with the nearest valid name.
"""

import difflib
import re
from collections.abc import Iterable
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, QuotedString, Sweep
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from chargpt.config.value_types import check_type
from chargpt.errors import Mistake

# Settings that only some choice of a group has.
ELSEWHERE = {"data.path": "data=text_file"}
# Groups that no default names: a choice in them is added.
ADDED = ("lecture", "grid", "speedrun")
# Groups in which nothing may be chosen.
MAY_BE_NONE = (("evaluate", "data"),)
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


def check(overrides: list[str], loader: ConfigLoader, config_name: str, sweep: bool) -> None:
    """Raises `Mistake` at the first override that names or gives something that is not there.

    Args:
        overrides: as typed.
        sweep: whether several values for one setting are allowed (`--multirun`).
    """
    parsed = [parse(override) for override in overrides]
    for override in parsed:
        _check_delete(override)
    groups = [o for o in parsed if _is_group(o, loader)]
    for override in groups:
        _check_choice(override, loader, config_name, sweep)
    first_choices = [_first(o) for o in groups]
    base = _compose(loader, config_name, first_choices)
    keys = {*_leaves(base), *_groups(loader)}
    for override in parsed:
        if override not in groups:
            _check_value(override, base, keys, sweep)


def parse(override: str) -> Override:
    """One word of the command line.

    Raises:
        Mistake: Hydra's grammar has no such thing.
    """
    try:
        return OverridesParser.create().parse_override(override)
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


def _is_group(override: Override, loader: ConfigLoader) -> bool:
    # `data=text_file` is a choice; `trainer={...}` and `~callbacks.samples` are not.
    group = override.key_or_group
    is_setting = "/" not in group and group not in ADDED and isinstance(override.value(), dict | list)
    return loader.repository.group_exists(group) and not is_setting


def _groups(loader: ConfigLoader, parent: str = "") -> list[str]:
    found = []
    for name in loader.repository.get_group_options(
        parent, ObjectType.GROUP
    ):  # the loader's own copies all configs
        group = f"{parent}/{name}" if parent else name
        if not group.startswith("hydra"):
            found += [group, *_groups(loader, group)]
    return found


def _values(override: Override) -> Iterable[Any]:
    value = override.value()
    if override.is_sweep_override():
        items = value.list if isinstance(value, Sweep) and hasattr(value, "list") else None
        return items if items is not None else ()
    return (value,)


def _no_sweep(override: Override, sweep: bool) -> None:
    if override.is_sweep_override() and not sweep:
        raise Mistake(
            f"{override.input_line} gives {override.key_or_group} more than one value: add -m to run them all, "
            f"or quote it if it is one value"
        )


def _check_delete(override: Override) -> None:
    key = override.key_or_group
    if override.is_delete() and not key.startswith(("callbacks.", "logger.", "hydra")):
        raise Mistake(
            f"{override.input_line}: a run needs {key}. Only parts of callbacks and logger can be left out, for "
            f"example ~callbacks.samples"
        )


def _check_choice(override: Override, loader: ConfigLoader, config_name: str, sweep: bool) -> None:
    _no_sweep(override, sweep)
    group = override.key_or_group
    if group in ADDED and not (override.is_add() or override.is_delete()):
        raise Mistake(f"{override.input_line}: a choice of {group} is added, with a plus: +{override.input_line}")
    if group == "hydra":
        raise Mistake(
            f"{override.input_line}: Hydra's settings are given one by one, for example hydra.run.dir=FOLDER"
        )
    if override.value() is None and (config_name, group) in MAY_BE_NONE:
        return
    options = loader.repository.get_group_options(group)
    for value in _values(override):
        choice = str(value.text if isinstance(value, QuotedString) else value)
        ours = not group.startswith("hydra") or group in ("hydra/launcher", "hydra/sweeper")
        if isinstance(value, dict | list) or (choice not in options and ours and not override.is_delete()):
            raise Mistake(
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


def _compose(loader: ConfigLoader, config_name: str, overrides: list[str]) -> DictConfig:
    try:
        return loader.load_configuration(
            config_name=config_name, overrides=[o for o in overrides if o], run_mode=RunMode.RUN
        )
    except (HydraException, OmegaConfBaseException) as error:
        raise Mistake(one_line(error)) from error


def _leaves(config: DictConfig, prefix: str = "") -> list[str]:
    found = []
    for key in config:
        name = f"{prefix}{key}"
        if prefix == "" and key == "hydra":
            continue
        found.append(name)
        if not OmegaConf.is_missing(config, key) and not OmegaConf.is_interpolation(config, key):
            child = config[key]
            if isinstance(child, DictConfig):
                found += _leaves(child, f"{name}.")
    return found


def _nearest(name: str, known: Iterable[str]) -> str:
    known = [k for k in known if not k.endswith(("_target_", "_partial_"))]
    by_tail = [k for k in known if k.replace("/", ".").rsplit(".", 1)[-1] == name]
    near = by_tail or difflib.get_close_matches(name, known, n=3, cutoff=0.65)
    if not near:
        tails = {k.rsplit(".", 1)[-1]: k for k in known}
        tail = name.replace("/", ".").rsplit(".", 1)[-1]
        near = [tails[m] for m in difflib.get_close_matches(tail, tails, n=2, cutoff=0.7)]
    return f"; did you mean {' or '.join(near[:3])}?" if near else "."


def _check_value(override: Override, base: DictConfig, keys: set[str], sweep: bool) -> None:
    key = override.key_or_group
    if key.split(".")[0].split("/")[0] == "hydra":
        return
    _no_sweep(override, sweep)
    if key not in keys:
        if override.is_add() or override.is_force_add():
            return
        if key in ELSEWHERE:
            raise Mistake(f"{key} is a setting of {ELSEWHERE[key]}: add {ELSEWHERE[key]} before it")
        raise Mistake(
            f"{key} is not a setting here{_nearest(key, keys)} "
            f"All settings and their values: --cfg job{'' if '/' not in key else '; all groups: --help'}"
        )
    if override.is_delete():
        return
    for given in _values(override):
        check_type(key, given.text if isinstance(given, QuotedString) else given, base, keys)
