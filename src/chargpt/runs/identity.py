"""Which settings identify a run: one list for resuming, for the folder names of sweeps and for tables.

The identity is model, recipe (optimizer, schedule, batches), data and seed: `SAVED_KEYS` without the settings below.
"""

from typing import Any

from omegaconf import DictConfig, OmegaConf

from chargpt.config.instantiate import SAVED_KEYS, SAVED_KEYS_SINCE_0_3

# The settings that `trainer=OPTION` changes in a resumed run. The other settings of `trainer` belong to the recipe.
MACHINE = (
    "trainer.accelerator",
    "trainer.devices",
    "trainer.strategy",
    "trainer.num_nodes",
    "trainer.compile",
    "trainer.deterministic",
    "trainer.benchmark",
    "trainer.sync_batchnorm",
    "trainer.threads",
)
# Settings that do not identify a run. The precision is not in `MACHINE`, because a recipe may set it.
NOT_IDENTITY = (
    *MACHINE,
    "trainer.precision",
    "trainer.log_every_n_steps",
    "trainer.min_steps",
    "trainer.min_epochs",
    "trainer.check_val_every_n_epoch",
    "trainer.limit_val_batches",
    "trainer.num_sanity_val_steps",
    "trainer.enable_progress_bar",
    "trainer.enable_model_summary",
    "trainer.enable_autolog_hparams",
    "trainer.fast_dev_run",
    "trainer.detect_anomaly",
    "trainer.profiler",
    "data.cache_dir",
    "data.validation_tokens",
    "data.max_validation_tokens",
    "name",
    "on_divergence",
    "checkpoint.every_n_steps",
    "checkpoint.every_minutes",
    "checkpoint.keep",
)
# The length of training: a run may be extended.
LENGTH = ("trainer.max_steps", "trainer.max_epochs", "trainer.max_time")
# Config groups, and settings of the command, that do not identify a run.
NOT_IDENTITY_GROUPS = ("logger", "callbacks", "checkpoint", "hydra", "resume", "rerun")
# Settings that may change on resuming. The text file may be moved: the digest of the text identifies the run.
MAY_CHANGE = (*NOT_IDENTITY, *LENGTH, "data.path", "data.suffixes")
# Defaults for settings that are missing from older runs and checkpoints.
OLDER_DEFAULTS = {
    "data.block_warmup": 0,
    "model.ngram_embedding.dropout": 0,
    "model.token_dropout": 0,
    "optimizer.batched": False,
    "optimizer.orthogonalization_dtype": "auto",
    "trainer.ema_decay": None,
    "trainer.gradient_clip_algorithm": "norm",
    "trainer.limit_train_batches": None,
    "trainer.max_epochs": None,
    "trainer.overfit_batches": None,
    "monitor": "val_loss",
    "mode": "min",
}


def identity(config: DictConfig) -> dict[str, Any]:
    """The settings that identify a run, by dotted name.

    Settings that are null or have their value in `OLDER_DEFAULTS` are left out.
    """
    result: dict[str, Any] = {}

    def collect(value: Any, path: str) -> None:
        if isinstance(value, dict) and value:
            for key, inner in value.items():
                collect(inner, f"{path}.{key}" if path else key)
        elif path not in MAY_CHANGE and not is_default(value, path):
            result[path] = value

    keys = [key for key in (*SAVED_KEYS, *SAVED_KEYS_SINCE_0_3) if key in config]
    collect(OmegaConf.to_container(OmegaConf.masked_copy(config, keys), resolve=True), "")
    return result


def is_default(value: Any, path: str) -> bool:
    """Whether leaving the setting out of the config would mean the same."""
    return value is None or (path in OLDER_DEFAULTS and value == OLDER_DEFAULTS[path])


def in_folder_name(key: str) -> bool:
    """Whether an override of a setting or group is part of the folder name of a sweep's job."""
    group = key.split(".", maxsplit=1)[0]
    return not (key in (*NOT_IDENTITY, *LENGTH, "trainer") or group in NOT_IDENTITY_GROUPS)
