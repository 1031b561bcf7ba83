"""Going on with a run: its own config, with what may change changed."""

import logging
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from chargpt.errors import Mistake

log = logging.getLogger(__name__)

# What makes the hardware: may be taken from another `trainer=` choice. The rest of `trainer` is the recipe's.
HARDWARE = ("accelerator", "devices", "strategy", "num_nodes", "precision", "deterministic")
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
)
FREE_GROUPS = ("logger", "callbacks", "hydra", "resume")


def changed(saved: dict[str, Any], composed: dict[str, Any], overrides: list[str]) -> dict[str, Any]:
    """The saved config with the overrides of this command line.

    Args:
        saved: the run's own config, from its checkpoint.
        composed: what this command line composes to by itself; its values are taken where it names a key.
        overrides: this command line.

    Raises:
        Mistake: an override would make it another run; says which, and what the run has.
    """
    config = OmegaConf.create(saved)
    for override in OverridesParser.create().parse_overrides(overrides):
        key = override.key_or_group
        if key.replace("/", ".").split(".")[0] in FREE_GROUPS:
            continue
        if key == "trainer":
            for name in HARDWARE:
                OmegaConf.update(config, f"trainer.{name}", composed["trainer"][name])
            continue
        path = key.replace("/", ".")
        before, now = OmegaConf.select(config, path), OmegaConf.select(OmegaConf.create(composed), path)
        if before == now or (key == "data" and before["_target_"] == now["_target_"]):
            continue  # the same again; what differs within it is said by overrides of its own
        if path not in MAY_CHANGE:
            shown = "" if OmegaConf.is_config(before) else f"={before}"
            raise Mistake(
                f"{override.input_line} would make it another run: resume goes on with its own {key}{shown}. "
                f"Leave it out, or start a new run without resume="
            )
        log.info("%s: %s before, %s now", key, before, now)
        OmegaConf.update(config, path, now, force_add=True)
    return OmegaConf.to_container(config, resolve=True)
