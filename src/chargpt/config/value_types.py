"""What type of value a setting takes: that of its value in `conf/`, and what `ALSO` says of a few."""

from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from chargpt.errors import Mistake

Types = tuple[type, ...]
_NAMES = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", type(None): "null"}
_NAMES |= {list: "a list", dict: "a group of settings"}
_GIVEN = _NAMES | {float: "a decimal number"}

# Settings that take other types than that of the value that stands in conf/.
ALSO: dict[str, Types] = {
    "data.cache_dir": (str, type(None)),
    "data.path": (str,),
    "trainer.devices": (int, str, list),
    "trainer.precision": (int, str),
    "trainer.max_time": (int, float, str, dict, type(None)),
    "trainer.gradient_clip_val": (int, float, type(None)),
    "trainer.ema_decay": (int, float, type(None)),
    "trainer.deterministic": (bool, str),
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


def check_type(key: str, value: Any, base: DictConfig, keys: set[str]) -> None:
    """Raises `Mistake` if the setting does not take a value of this type.

    Args:
        key: of the setting, with dots.
        base: the config without the value.
        keys: all settings and groups, for a hint.
    """
    accepted, group = _accepted(base, key), key.replace(".", "/")
    if accepted and not is_interpolation(value) and type(value) not in accepted:
        shown = repr(value) if isinstance(value, str) else "null" if value is None else value
        choose = f". To choose one by its name: {group}={value}" if group in keys and group != key else ""
        raise Mistake(
            f"{key}={shown}: {key} is {_in_words(accepted)}, not {_GIVEN.get(type(value), 'that')}{choose}"
        )


def is_interpolation(value: Any) -> bool:
    """Whether something else's value is meant."""
    return isinstance(value, str) and "${" in value


def check_parents(key: str, base: DictConfig) -> None:
    """Raises `Mistake` if a setting is added to one that takes no settings of its own."""
    while "." in key:
        key, _, name = key.rpartition(".")
        if (accepted := _accepted(base, key)) and dict not in accepted:
            raise Mistake(f"{key}.{name}: {key} is {_in_words(accepted)}, it has no settings of its own")


def _in_words(accepted: Types) -> str:
    return " or ".join(_NAMES[t] for t in accepted if not (t is int and float in accepted))


def _accepted(base: DictConfig, key: str) -> Types:
    if key in ALSO:
        return ALSO[key]
    try:
        value = OmegaConf.select(base, key)
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
