"""Going on with a run: its own config, with what may change changed."""

import logging
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from chargpt.errors import UserError
from chargpt.runs.identity import MACHINE, MAY_CHANGE, NOT_IDENTITY_GROUPS, is_default

log = logging.getLogger(__name__)


def log_changes(before: dict[str, Any] | DictConfig, now: dict[str, Any]) -> None:
    """Says which of the settings that may change have changed."""
    before, now = (OmegaConf.create(config) for config in (before, now))
    for path in MAY_CHANGE:
        old, new = OmegaConf.select(before, path), OmegaConf.select(now, path)
        if old != new:
            log.info("%s: %s before, %s now", path, old, new)


def apply_overrides(
    saved: dict[str, Any] | DictConfig, composed: dict[str, Any], overrides: list[str], choices: dict[str, str]
) -> dict[str, Any]:
    """The saved config with the overrides of this command line.

    Args:
        saved: the run's own config, from its checkpoint.
        composed: what this command line composes to by itself; its values are taken where it names a key.
        overrides: this command line.
        choices: the run's own choice in each group.

    Raises:
        UserError: an override would make it another run; says which, and what the run has.
    """
    config = OmegaConf.create(saved)
    for override in OverridesParser.create().parse_overrides(overrides):
        key = override.key_or_group
        if key.replace("/", ".").split(".")[0] in NOT_IDENTITY_GROUPS:
            continue
        if key == "trainer":
            for path in MACHINE:
                if (value := OmegaConf.select(OmegaConf.create(composed), path)) is not None:
                    OmegaConf.update(config, path, value)
            continue
        path = key.replace("/", ".")
        before, now = OmegaConf.select(config, path), OmegaConf.select(OmegaConf.create(composed), path)
        if before is now is None and (own := choices.get(key)) != override.value():
            has = f"it has {key}={own}" if own else f"it has no {key}"
            raise UserError(
                f"{override.input_line} would make it another run: {has}. Leave it out, or start a new run "
                f"without resume="
            )
        if _without_older_defaults(before, path) == _without_older_defaults(now, path) or (
            key == "data" and before["_target_"] == now["_target_"]
        ):
            continue  # the same again; what differs within it is said by overrides of its own
        if path not in MAY_CHANGE:
            shown = "" if OmegaConf.is_config(before) else f"={before}"
            raise UserError(
                f"{override.input_line} would make it another run: resume goes on with its own {key}{shown}. "
                f"Leave it out, or start a new run without resume="
            )
        OmegaConf.update(config, path, now, force_add=True)
    return OmegaConf.to_container(config, resolve=True)


def _without_older_defaults(part: Any, path: str) -> Any:
    """A part of a config without the settings that an earlier version of it may not have had."""
    if OmegaConf.is_config(part):
        part = OmegaConf.to_container(part, resolve=True)
    if isinstance(part, dict):
        given = {key: _without_older_defaults(value, f"{path}.{key}") for key, value in part.items()}
        return {key: value for key, value in given.items() if value is not None}
    return None if is_default(part, path) else part
