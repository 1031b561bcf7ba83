"""The settings and groups of a config, and the accepted types of each setting."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

from hydra.core.config_loader import ConfigLoader
from hydra.core.object_type import ObjectType
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from chargpt.errors import UserError

Types = tuple[type, ...]
_TYPE_NAMES = {int: "an integer", float: "a number", str: "a string", bool: "true or false", type(None): "null"}
_TYPE_NAMES |= {list: "a list", dict: "a group of settings"}
_VALUE_NAMES = _TYPE_NAMES | {float: "a float", bool: "a boolean"}

# Settings that accept other types than that of their value in conf/.
EXTRA_TYPES: dict[str, Types] = {
    "data.cache_dir": (str, type(None)),
    "data.path": (str, list),
    "data.max_validation_tokens": (int, str, type(None)),
    "trainer.devices": (int, str, list),
    "trainer.precision": (int, str),
    "trainer.threads": (int, str),
    "trainer.max_time": (int, float, str, dict, type(None)),
    "trainer.gradient_clip_val": (int, float, type(None)),
    "trainer.ema_decay": (int, float, type(None)),
    "trainer.deterministic": (bool, str),
    "trainer.fast_dev_run": (int, bool, type(None)),
    "trainer.val_check_interval": (int, float),
    "trainer.profiler": (str, type(None)),
    **dict.fromkeys(
        ("trainer.limit_train_batches", "trainer.limit_val_batches", "trainer.overfit_batches"),
        (int, float, type(None)),
    ),
    **dict.fromkeys(
        (
            "trainer.max_epochs",
            "trainer.min_epochs",
            "trainer.min_steps",
            "trainer.check_val_every_n_epoch",
        ),
        (int, type(None)),
    ),
    **dict.fromkeys(
        (
            "trainer.benchmark",
            "trainer.detect_anomaly",
            "trainer.enable_autolog_hparams",
            "trainer.enable_model_summary",
            "trainer.enable_progress_bar",
            "trainer.inference_mode",
            "trainer.sync_batchnorm",
        ),
        (bool, type(None)),
    ),
    "checkpoint.every_n_steps": (int, type(None)),
    "checkpoint.every_minutes": (int, float, type(None)),
    "resume": (str,),
    "rerun": (str, type(None)),
    "name": (str, int, float, bool),
    "prompt": (str, type(None)),
    "text": (str, type(None)),
    "runs": (str,),
    "file": (str, type(None)),
    "folder": (str, type(None)),
    "top_k": (int, type(None)),
    "top_p": (int, float, type(None)),
    "device": (str, int),
    "data": (dict, type(None)),
}


class Groups:
    """The config groups of a command and their options.

    Args:
        loader: Hydra's config loader.
        searchpath: the overrides that add config folders.
    """

    def __init__(self, loader: ConfigLoader, searchpath: list[str]):
        self._loader: Any = loader
        self._searchpath = searchpath

    @cached_property
    def names(self) -> list[str]:
        """All groups except Hydra's own."""
        return self._below("")

    def __contains__(self, group: str) -> bool:
        return group in self.names or (group.startswith("hydra") and bool(self.options(group)))

    def options(self, group: str, kind: ObjectType = ObjectType.CONFIG) -> list[str]:
        return self._repository.get_group_options(group, kind)

    @cached_property
    def _repository(self) -> Any:
        # Private: the public `get_group_options` copies Hydra's config store for each group, 0.14 s for all of them.
        return self._loader._parse_overrides_and_create_caching_repo(None, self._searchpath)[1]

    def _below(self, parent: str) -> list[str]:
        groups = []
        for name in self.options(parent, ObjectType.GROUP):
            group = f"{parent}/{name}" if parent else name
            if not group.startswith("hydra"):
                groups += [group, *self._below(group)]
        return groups


@dataclass
class Schema:
    """The settings of a config and their types.

    Attributes:
        base: the config with the selected options of its groups, before values are overridden.
        groups: all groups.
    """

    base: DictConfig
    groups: Groups

    @cached_property
    def keys(self) -> set[str]:
        """All settings (with dots) and all groups (with slashes)."""
        return {*_flatten(self.base), *self.groups.names}

    def check_type(self, key: str, value: Any) -> None:
        """Raises `UserError` if the setting does not accept a value of this type."""
        accepted, group = self._accepted(key), key.replace(".", "/")
        if accepted and not is_interpolation(value) and type(value) not in accepted:
            shown = repr(value) if isinstance(value, str) else "null" if value is None else value
            hint = f". To select an option of {group}: {group}={value}" if group in self.keys and group != key else ""
            actual = _VALUE_NAMES.get(type(value), type(value).__name__)
            raise UserError(f"{key}={shown}: it must be {_describe_types(accepted)}, not {actual}{hint}")

    def check_parents(self, key: str) -> None:
        """Raises `UserError` if `key` adds a setting below one that is not a group of settings."""
        while "." in key:
            key, _, name = key.rpartition(".")
            if (accepted := self._accepted(key)) and dict not in accepted:
                raise UserError(f"{key}.{name}: {key} is {_describe_types(accepted)} and cannot contain settings")

    def _accepted(self, key: str) -> Types:
        if key in EXTRA_TYPES:
            return EXTRA_TYPES[key]
        try:
            value = OmegaConf.select(self.base, key)
        except OmegaConfBaseException:
            return ()
        if isinstance(value, DictConfig):
            return (dict,)
        if isinstance(value, ListConfig):
            return (list,)
        if isinstance(value, float):
            return (int, float)
        if isinstance(value, str):
            return (str, int, float, bool)  # name=3 is a name
        return (type(value),) if value is not None else ()


def is_interpolation(value: Any) -> bool:
    """Whether a value refers to another setting."""
    return isinstance(value, str) and "${" in value


def _flatten(config: DictConfig, prefix: str = "") -> list[str]:
    names = []
    for key in config:
        name = f"{prefix}{key}"
        if name == "hydra":
            continue
        names.append(name)
        # `is_interpolation` accepts any key, although it declares fewer types than a config's keys have.
        if not OmegaConf.is_missing(config, key) and not OmegaConf.is_interpolation(config, cast(str, key)):
            child = config[key]
            if isinstance(child, DictConfig):
                names += _flatten(child, f"{name}.")
    return names


def _describe_types(accepted: Types) -> str:
    return " or ".join(_TYPE_NAMES[t] for t in accepted if not (t is int and float in accepted))
