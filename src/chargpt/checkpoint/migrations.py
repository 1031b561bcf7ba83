"""Maps the names of earlier versions to the current ones: targets, settings, config groups and state-dict keys.

Runs, checkpoints and exports are translated when a file is read, so the rest of the code uses only the current names.
The old names of settings and groups are also accepted on the command line, with a warning, until 0.4.
"""

import re
from typing import Any

# Moved or renamed modules.
MODULES = {
    "chargpt.model.logits": "chargpt.model.softcap",
    "chargpt.model.n_grams": "chargpt.model.ngram_embedding",
    "chargpt.model.skips": "chargpt.model.unet_skips",
    "chargpt.model.values": "chargpt.model.value_residual",
    "chargpt.training.muon": "chargpt.optim.muon",
    "chargpt.training.optimizer": "chargpt.optim.adamw",
    "chargpt.training.progress": "chargpt.training.callbacks.progress_bar",
    "chargpt.training.samples": "chargpt.training.callbacks.samples",
    "chargpt.training.schedule": "chargpt.optim.lr_schedule",
    "chargpt.training.soap": "chargpt.optim.soap",
    "chargpt.training.tensorboard": "chargpt.training.loggers.tensorboard",
}
# Functions and classes that were renamed, or moved out of their module.
TARGETS = {
    "chargpt.model.n_grams.NGrams": "chargpt.model.ngram_embedding.NGramEmbedding",
    "chargpt.model.skips.UNet": "chargpt.model.unet_skips.UNetSkips",
    "chargpt.training.optimizer.sgd": "chargpt.optim.sgd.sgd",
    "chargpt.training.progress.Progress": "chargpt.training.callbacks.progress_bar.TrainingProgressBar",
}
# Settings, with all settings nested in them.
SETTINGS = {
    "model.logits": "model.softcap",
    "model.n_grams": "model.ngram_embedding",
    "model.skips": "model.unet_skips",
    "model.values": "model.value_residual",
}
# Config groups.
GROUPS = {old.replace(".", "/"): new.replace(".", "/") for old, new in SETTINGS.items()}
GROUPS["data/blocks"] = "data/dataloader"
# Patterns of state-dict keys. Keys have the prefix `model.` in a checkpoint and `members.N.` in an ensemble.
_PREFIX, _BLOCK = r"^((?:model\.)?(?:members\.\d+\.)?)", r"(blocks\.\d+\.)"
STATE_DICT_KEYS = {
    _PREFIX + r"n_grams\.": r"\1ngram_embedding.",
    _PREFIX + r"skips\.": r"\1unet_skips.",
    _PREFIX + r"values\.": r"\1value_residual.",
    _PREFIX + _BLOCK + r"attention\.projection\.": r"\1\2attention.out_proj.",
    _PREFIX + _BLOCK + r"attention\.qkv\.": r"\1\2attention.qkv_proj.",
    _PREFIX + _BLOCK + r"feed_forward\.expand\.": r"\1\2feed_forward.up_proj.",
    _PREFIX + _BLOCK + r"feed_forward\.gate\.": r"\1\2feed_forward.gate_proj.",
    _PREFIX + _BLOCK + r"feed_forward\.projection\.": r"\1\2feed_forward.down_proj.",
}
# Only the settings and state-dict keys of these models are translated.
MODELS = ("chargpt.model.transformer.Transformer", "chargpt.model.ensemble.Ensemble")


def migrate_target(target: str) -> str:
    """Returns the current name of a `_target_`."""
    module, _, name = target.rpartition(".")
    return TARGETS.get(target) or f"{MODULES.get(module, module)}.{name}".removeprefix(".")


def migrate(config: Any) -> Any:
    """Translates a saved config (plain data) to current targets and settings. Anything else is returned unchanged."""
    if isinstance(config, list):
        return [migrate(item) for item in config]
    if not isinstance(config, dict):
        return config
    migrated = {key: migrate(value) for key, value in config.items()}
    if isinstance(migrated.get("_target_"), str):
        migrated["_target_"] = migrate_target(migrated["_target_"])
    model = migrated.get("model")
    if isinstance(model, dict) and model.get("_target_") in MODELS:
        migrated["model"] = {SETTINGS.get(f"model.{key}", f"model.{key}")[6:]: value for key, value in model.items()}
    return migrated


def migrate_state_dict(state: dict[str, Any], config: dict[str, Any]) -> dict[str, Any]:
    """Translates the state dict of a model to current keys, in the same order.

    Args:
        config: the config of the run, as `migrate` returns it.
    """
    model = config.get("model")
    if not isinstance(model, dict) or model.get("_target_") not in MODELS:
        return state

    def current(key: str) -> str:
        for pattern, name in STATE_DICT_KEYS.items():
            key = re.sub(pattern, name, key)
        return key

    return {current(key): value for key, value in state.items()}


def migrate_key(key: str) -> str:
    """Returns the current name of a setting (`model.n_grams.dropout`) or group (`model/n_grams` or `GROUP@PACKAGE`)."""
    return _rename(key, SETTINGS, GROUPS)


def migrate_override(override: str) -> str:
    """Translates an override to the current name of its setting or group."""
    return _rename_override(override, SETTINGS, GROUPS)


def legacy_override(override: str) -> str:
    """Translates an override back to the names of version 0.2, which are in the folder names of its sweeps."""
    return _rename_override(override, *({new: old for old, new in names.items()} for names in (SETTINGS, GROUPS)))


def _rename_override(override: str, settings: dict[str, str], groups: dict[str, str]) -> str:
    return re.sub(r"^([+~]*)([^=]*)", lambda match: match[1] + _rename(match[2], settings, groups), override, count=1)


def _rename(key: str, settings: dict[str, str], groups: dict[str, str]) -> str:
    group, at, package = key.partition("@")
    if at:
        return f"{_rename(group, settings, groups)}@{_rename(package, settings, groups)}"
    for names, separator in ((settings, "."), (groups, "/")):
        for old, new in names.items():
            if key == old or key.startswith(old + separator):
                return new + key[len(old) :]
    return key
