"""Going on with a run: its own config, with what may change changed."""

import logging
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from chargpt.config.build import SAVED
from chargpt.errors import Mistake

log = logging.getLogger(__name__)

# What another `trainer=` choice brings to a resumed run. The rest of `trainer` is the recipe's.
MACHINE = ("accelerator", "devices", "strategy", "num_nodes", "compile", "deterministic")
# What makes the hardware. A recipe may ask for a precision, so it is changed by its own name alone.
HARDWARE = (*MACHINE, "precision")
# What a resumed run may have otherwise than before; all else identifies it.
MAY_CHANGE = (
    *(f"trainer.{key}" for key in HARDWARE),
    "trainer.max_steps",
    "trainer.max_time",
    "trainer.log_every_n_steps",
    "data.cache_dir",
    "data.path",
    "data.validation_tokens",
    "name",
    "on_divergence",
)
# Settings that came later, each with the value that means what was before: a run from then has them all the same.
LATER = {
    "data.block_warmup": 0,
    "model.n_grams.dropout": 0,
    "model.token_dropout": 0,
    "optimizer.batched": False,
    "optimizer.orthogonalization_dtype": "auto",
    "trainer.ema_decay": None,
}
FREE_GROUPS = ("logger", "callbacks", "hydra", "resume", "rerun")


def identity(config: DictConfig) -> dict[str, Any]:
    """What makes a run this run and no other, by dotted names: model, recipe, data and seed.

    What is null, or as it was before there was such a setting, is not named.
    """
    found: dict[str, Any] = {}

    def collect(part: Any, path: str) -> None:
        if isinstance(part, dict) and part:
            for key, value in part.items():
                collect(value, f"{path}.{key}" if path else key)
        elif path not in MAY_CHANGE and not _as_before(part, path):
            found[path] = part

    collect(OmegaConf.to_container(OmegaConf.masked_copy(config, list(SAVED)), resolve=True), "")
    return found


def tell_changes(before: dict[str, Any] | DictConfig, now: dict[str, Any]) -> None:
    """Says which of the settings that may change have changed."""
    before, now = (OmegaConf.create(config) for config in (before, now))
    for path in MAY_CHANGE:
        old, new = OmegaConf.select(before, path), OmegaConf.select(now, path)
        if old != new:
            log.info("%s: %s before, %s now", path, old, new)


def changed(
    saved: dict[str, Any] | DictConfig, composed: dict[str, Any], overrides: list[str], choices: dict[str, str]
) -> dict[str, Any]:
    """The saved config with the overrides of this command line.

    Args:
        saved: the run's own config, from its checkpoint.
        composed: what this command line composes to by itself; its values are taken where it names a key.
        overrides: this command line.
        choices: the run's own choice in each group.

    Raises:
        Mistake: an override would make it another run; says which, and what the run has.
    """
    config = OmegaConf.create(saved)
    for override in OverridesParser.create().parse_overrides(overrides):
        key = override.key_or_group
        if key.replace("/", ".").split(".")[0] in FREE_GROUPS:
            continue
        if key == "trainer":
            for name in set(MACHINE) & composed["trainer"].keys():
                OmegaConf.update(config, f"trainer.{name}", composed["trainer"][name])
            continue
        path = key.replace("/", ".")
        before, now = OmegaConf.select(config, path), OmegaConf.select(OmegaConf.create(composed), path)
        if before is now is None and (own := choices.get(key)) != override.value():
            has = f"it has {key}={own}" if own else f"it has no {key}"
            raise Mistake(
                f"{override.input_line} would make it another run: {has}. Leave it out, or start a new run "
                f"without resume="
            )
        if _given(before, path) == _given(now, path) or (key == "data" and before["_target_"] == now["_target_"]):
            continue  # the same again; what differs within it is said by overrides of its own
        if path not in MAY_CHANGE:
            shown = "" if OmegaConf.is_config(before) else f"={before}"
            raise Mistake(
                f"{override.input_line} would make it another run: resume goes on with its own {key}{shown}. "
                f"Leave it out, or start a new run without resume="
            )
        OmegaConf.update(config, path, now, force_add=True)
    return OmegaConf.to_container(config, resolve=True)


def _as_before(value: Any, path: str) -> bool:
    """Whether a setting says what a config without it means."""
    return value is None or (path in LATER and value == LATER[path])


def _given(part: Any, path: str) -> Any:
    """A part of a config without the settings that an earlier version of it may not have had."""
    if OmegaConf.is_config(part):
        part = OmegaConf.to_container(part, resolve=True)
    if isinstance(part, dict):
        given = {key: _given(value, f"{path}.{key}") for key, value in part.items()}
        return {key: value for key, value in given.items() if value is not None}
    return None if _as_before(part, path) else part
