"""Checks the words of the command line against the config before anything is composed, built or imported.

Hydra alone tells a mistyped key in ten lines and lets a value of any type through; here each mistake is one
line with the nearest valid name.
"""

import contextlib
import difflib
from collections.abc import Iterable
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.types import Override, QuotedString, Sweep
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from chargpt.config.value_types import check_parents, check_type, is_interpolation
from chargpt.config.words import one_line, parse
from chargpt.errors import Mistake

# Settings that only some choice of a group has.
ELSEWHERE = {"data.path": "data=text_file"}
# Groups that no default names: a choice in them is added.
ADDED = ("lecture", "grid", "speedrun")


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
        _check_choice(override, loader, sweep)
    first_choices = [_first(o) for o in groups]
    base = _compose(loader, config_name, first_choices)
    keys = {*_leaves(base), *_groups(loader)}
    for override in parsed:
        if override not in groups:
            _check_value(override, base, keys, sweep)
    kept = [o for o in parsed if o.key_or_group in keys and not o.is_delete()]
    interpolated = [o for o in kept if any(map(is_interpolation, _values(o)))]
    if interpolated and not sweep:
        _check_interpolated(interpolated, _compose(loader, config_name, overrides), base, keys)


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
    given = [value]
    if override.is_sweep_override():
        given = value.list if isinstance(value, Sweep) and hasattr(value, "list") else []
    return [one.text if isinstance(one, QuotedString) else one for one in given]


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


def _check_choice(override: Override, loader: ConfigLoader, sweep: bool) -> None:
    _no_sweep(override, sweep)
    group = override.key_or_group
    if group in ADDED and not (override.is_add() or override.is_delete()):
        raise Mistake(f"{override.input_line}: a choice of {group} is added, with a plus: +{override.input_line}")
    if group == "hydra":
        raise Mistake(
            f"{override.input_line}: Hydra's settings are given one by one, for example hydra.run.dir=FOLDER"
        )
    options = loader.repository.get_group_options(group)
    for value in _values(override):
        choice = "null" if value is None else str(value)
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
            check_parents(key, base)
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
        check_type(key, given, base, keys)


def _check_interpolated(overrides: list[Override], composed: DictConfig, base: DictConfig, keys: set[str]) -> None:
    """What another setting's value is taken for: only the whole config says."""
    for override in overrides:
        with contextlib.suppress(OmegaConfBaseException):  # what leads nowhere is told where it is needed
            taken = OmegaConf.select(composed, override.key_or_group)
            taken = OmegaConf.to_container(taken) if OmegaConf.is_config(taken) else taken
            check_type(override.key_or_group, taken, base, keys)
