"""The config of a resumed run: the saved config with the overrides that are allowed on resuming."""

import logging
from typing import Any, cast

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from chargpt.errors import UserError
from chargpt.runs.identity import MACHINE, MAY_CHANGE, NOT_IDENTITY_GROUPS, is_default

log = logging.getLogger(__name__)


def log_changes(saved: dict[str, Any] | DictConfig, current: dict[str, Any]) -> None:
    """Logs which of the settings in `MAY_CHANGE` have changed."""
    configs = [OmegaConf.create(config) for config in (saved, current)]
    for path in MAY_CHANGE:
        old, new = (OmegaConf.select(config, path) for config in configs)
        if old != new:
            log.info("%s changed from %s to %s", path, old, new)


def apply_overrides(
    saved: dict[str, Any] | DictConfig, composed: dict[str, Any], overrides: list[str], choices: dict[str, str]
) -> dict[str, Any]:
    """Applies the overrides of this command line to the saved config.

    Args:
        saved: the config of the run, from its checkpoint.
        composed: the config that this command line composes to; supplies the values of the overridden keys.
        overrides: the overrides of this command line.
        choices: the selected option of each config group in the saved run.

    Raises:
        UserError: an override would change the identity of the run.
    """
    config = OmegaConf.create(saved)
    for override in OverridesParser.create().parse_overrides(overrides):
        key = override.key_or_group
        if key == "checkpoint":  # the option; the intervals of the run remain
            key = "checkpoint.keep"
        if key.startswith("checkpoint."):
            OmegaConf.update(config, key, OmegaConf.select(OmegaConf.create(composed), key), force_add=True)
            continue
        if key.replace("/", ".").split(".")[0] in NOT_IDENTITY_GROUPS:
            continue
        if key == "trainer":
            for path in MACHINE:
                if (value := OmegaConf.select(OmegaConf.create(composed), path)) is not None:
                    OmegaConf.update(config, path, value)
            continue
        path = key.replace("/", ".")
        old, new = OmegaConf.select(config, path), OmegaConf.select(OmegaConf.create(composed), path)
        if old is new is None and (choice := choices.get(key)) != override.value():
            saved_choice = f"the saved run has {key}={choice}" if choice else f"the saved run has no {key}"
            raise UserError(
                f"{override.input_line} would make this a different run: {saved_choice}. Remove it, or start a new "
                f"run without resume="
            )
        if _without_older_defaults(old, path) == _without_older_defaults(new, path) or (
            key == "data" and old["_target_"] == new["_target_"]
        ):
            continue  # no change; settings inside a group are compared by their own overrides
        if path not in MAY_CHANGE:
            value = "another value" if OmegaConf.is_config(old) else f"{key}={old}"
            raise UserError(
                f"{override.input_line} would make this a different run: the saved run has {value}. Remove it, or "
                f"start a new run without resume="
            )
        OmegaConf.update(config, path, new, force_add=True)
    return cast(dict[str, Any], OmegaConf.to_container(config, resolve=True))


def _without_older_defaults(value: Any, path: str) -> Any:
    """A config value without its settings that are null or have their value in `OLDER_DEFAULTS`."""
    if OmegaConf.is_config(value):
        value = OmegaConf.to_container(value, resolve=True)
    if isinstance(value, dict):
        inner = {key: _without_older_defaults(value, f"{path}.{key}") for key, value in value.items()}
        return {key: value for key, value in inner.items() if value is not None}
    return None if is_default(value, path) else value
