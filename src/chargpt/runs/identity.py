"""What makes a run this run and no other: one list for resuming, for the folders of a sweep and for tables.

The identity are model, recipe (optimizer, schedule, batches), data and seed: what of `SAVED_KEYS` is not listed here.
"""

from typing import Any

from omegaconf import DictConfig, OmegaConf

from chargpt.config.instantiate import SAVED_KEYS, SAVED_KEYS_SINCE_0_3

# What another `trainer=` choice brings to a resumed run. The rest of `trainer` is the recipe's.
MACHINE = (
    "trainer.accelerator",
    "trainer.devices",
    "trainer.strategy",
    "trainer.num_nodes",
    "trainer.compile",
    "trainer.deterministic",
)
# What makes the hardware. A recipe may ask for a precision, so it is changed by its own name alone.
HARDWARE = (*MACHINE, "trainer.precision")
# Settings that do not identify a run: with another value it is the same run.
NOT_IDENTITY = (
    *HARDWARE,
    "trainer.log_every_n_steps",
    "data.cache_dir",
    "data.validation_tokens",
    "name",
    "on_divergence",
)
# How long it trains: a run may go on for longer.
LENGTH = ("trainer.max_steps", "trainer.max_time")
# Where its text lies. It may move: the digest of the text identifies the run.
PLACE = ("data.path",)
# Groups, and settings of the command, whose choices do not identify a run.
NOT_IDENTITY_GROUPS = ("logger", "callbacks", "hydra", "resume", "rerun")
# What a resumed run may have otherwise than before.
MAY_CHANGE = (*NOT_IDENTITY, *LENGTH, *PLACE)
# Defaults for settings that are missing from older runs and checkpoints.
OLDER_DEFAULTS = {
    "data.block_warmup": 0,
    "model.ngram_embedding.dropout": 0,
    "model.token_dropout": 0,
    "optimizer.batched": False,
    "optimizer.orthogonalization_dtype": "auto",
    "trainer.ema_decay": None,
    "monitor": "val_loss",
    "mode": "min",
}


def identity(config: DictConfig) -> dict[str, Any]:
    """What makes a run this run, by dotted names.

    What is null, or as it was before there was such a setting, is not named.
    """
    found: dict[str, Any] = {}

    def collect(part: Any, path: str) -> None:
        if isinstance(part, dict) and part:
            for key, value in part.items():
                collect(value, f"{path}.{key}" if path else key)
        elif path not in MAY_CHANGE and not is_default(part, path):
            found[path] = part

    settings = [key for key in (*SAVED_KEYS, *SAVED_KEYS_SINCE_0_3) if key in config]
    collect(OmegaConf.to_container(OmegaConf.masked_copy(config, settings), resolve=True), "")
    return found


def is_default(value: Any, path: str) -> bool:
    """Whether a setting says what a config without it means."""
    return value is None or (path in OLDER_DEFAULTS and value == OLDER_DEFAULTS[path])


def in_folder_name(key: str) -> bool:
    """Whether a setting or group, given on a command line, is part of the name of a job's folder in a sweep."""
    group = key.split(".", maxsplit=1)[0]
    return not (key in (*NOT_IDENTITY, *LENGTH, "trainer") or group in NOT_IDENTITY_GROUPS)
