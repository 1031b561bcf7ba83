"""The callbacks and loggers of a resumed run: those of its recorded choices, composed again from the installed configs.

The files of a run may be untrusted. Of its recorded overrides of callbacks and loggers, only the options of the groups,
numbers and removals are used, so that no file can name code or a path.
"""

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from chargpt.config.compose import recompose, task_overrides
from chargpt.runs.directory import RunDirectory

log = logging.getLogger(__name__)

GROUPS = ("callbacks", "logger")


def restore_observers(directory: RunDirectory, saved: Mapping[str, Any]) -> dict[str, Any]:
    """Composes `callbacks` and `logger` as the run recorded them; empty if it recorded nothing that can be used.

    Overrides of this command have priority. What is left out is logged.

    Args:
        saved: the settings of the run, to which those of callbacks and loggers refer, such as `${seed}`.
    """
    recorded = [override for override in map(_parse, directory.read_overrides()) if override is not None]
    typed = {override.key_or_group for override in map(_parse, task_overrides()) if override is not None}
    choices = directory.read_choices()
    selected = {override.key_or_group for override in recorded}
    unchanged = [_parse(f"{group}={choices[group]}") for group in GROUPS if group in choices and group not in selected]
    lines: list[str] = []
    left_out: list[str] = []
    for override in [*filter(None, unchanged), *recorded]:
        group, _, setting = override.key_or_group.partition(".")
        if group not in GROUPS or override.key_or_group in typed:
            continue
        name = setting.partition(".")[0]
        if (
            _names_no_code(override)
            and not _reads_settings_here(override)
            and not any(line.startswith(f"{group}.{name}.") for line in left_out)
        ):
            lines.append(override.input_line or "")
        else:
            left_out.append((override.input_line or "").lstrip("+"))
    observers: dict[str, Any] = {}
    if lines:
        try:
            config = recompose(lines)
            config.name, config.seed = saved["name"], saved["seed"]
            observers = {group: OmegaConf.to_container(config[group], resolve=True) for group in GROUPS}
        except (HydraException, OmegaConfBaseException):
            left_out += lines
    if left_out:
        log.warning("not restored from the run, add it to this command to use it: %s", " ".join(left_out))
    return observers


def selected_option(directory: RunDirectory, group: str) -> str:
    """The override by which this command or else the run selected an option of `callbacks` or `logger`."""
    parsed = [override for override in map(_parse, [*directory.read_overrides(), *task_overrides()]) if override]
    lines = [f"{group}={directory.read_choices().get(group)}"]
    lines += [override.input_line or "" for override in parsed if override.key_or_group == group]
    return lines[-1]


def _parse(line: str) -> Override | None:
    try:
        return OverridesParser.create().parse_override(line)
    except HydraException:
        return None


def _reads_settings_here(override: Override) -> bool:
    """Whether the option is W&B, and settings in the current folder may send the user's API key to another server."""
    return "wandb" in str(override.value()) and any(Path(name, "settings").exists() for name in ("wandb", ".wandb"))


def _names_no_code(override: Override) -> bool:
    """Whether it selects options of a group, removes an entry, or sets a number."""
    value = override.value()
    if override.is_delete():
        return True
    if "." in override.key_or_group:
        return not override.is_add() and (isinstance(value, bool | int | float) or value is None)
    names = value if isinstance(value, list) else [value]
    return all(isinstance(name, str) and re.fullmatch(r"[\w-]+", name) for name in names)
