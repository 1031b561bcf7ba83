"""What saved configs of earlier versions call by another name, in one table.

Runs, checkpoints and exports carry the `_target_`s of the version that wrote them. They are translated where a
file is read, so that nothing else in the project knows the old names. A target that a user types by its old name
works too.
"""

from typing import Any

# Modules that have moved, old name -> new name.
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
# Functions and classes that have moved by themselves.
TARGETS = {"chargpt.training.optimizer.sgd": "chargpt.optim.sgd.sgd"}


def migrate_target(target: str) -> str:
    """The name that a `_target_` has now."""
    module, _, name = target.rpartition(".")
    return TARGETS.get(target) or f"{MODULES.get(module, module)}.{name}".removeprefix(".")


def migrate(config: Any) -> Any:
    """A saved config, plain data, as this version would write it. What is not a config is returned as it is."""
    if isinstance(config, dict):
        found = {key: migrate(value) for key, value in config.items()}
        if isinstance(found.get("_target_"), str):
            found["_target_"] = migrate_target(found["_target_"])
        return found
    return [migrate(item) for item in config] if isinstance(config, list) else config
