"""Builds the model of a config: chargpt's own, or any `nn.Module` of the user's."""

import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn

from chargpt.config.instantiate import instantiate
from chargpt.config.trust import FILE, Trust, locate
from chargpt.errors import UserError
from chargpt.model.adapters import ModuleAdapter
from chargpt.model.language_model import LanguageModel

MISSING = "???"


def build_model(config: dict[str, Any], vocab_size: int, trust: Trust = FILE) -> LanguageModel:
    """Builds the model, and adapts it if it is not a `LanguageModel`.

    Every `vocab_size: ???` in the config is filled in. If the config has no `vocab_size`, it is passed to a model that
    has a parameter of this name. The config's `block_size` also determines the length of the training blocks: it is
    passed only to a model that accepts it.

    Args:
        config: the config's `model`, as plain data.
        vocab_size: V, from the tokenizer.

    Raises:
        UserError: as `instantiate`; or the model is not an `nn.Module`, or has no valid `block_size`.
    """
    config = _fill_vocab_size(config, vocab_size)
    parameters = _parameters(locate(config.get("_target_"), "model", trust))
    accepts_any = any(parameter.kind == parameter.VAR_KEYWORD for parameter in parameters.values())
    arguments = {"vocab_size": vocab_size} if "vocab_size" in parameters and "vocab_size" not in config else {}
    settings = dict(config)
    if "block_size" not in parameters and not accepts_any:
        settings.pop("block_size", None)
    module = instantiate(settings, "model", nn.Module, trust, **arguments)
    if isinstance(module, LanguageModel):
        return module
    block_size = config.get("block_size")
    if not isinstance(block_size, int) or block_size < 1:
        raise UserError(f"model.block_size={block_size!r}: it must be the number of tokens of context, 1 or more")
    return ModuleAdapter(module, vocab_size, block_size)


def _fill_vocab_size(config: Any, vocab_size: int) -> Any:
    if isinstance(config, dict):
        return {
            key: vocab_size if key == "vocab_size" and value == MISSING else _fill_vocab_size(value, vocab_size)
            for key, value in config.items()
        }
    return [_fill_vocab_size(value, vocab_size) for value in config] if isinstance(config, list) else config


def _parameters(target: Any) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(target).parameters
    except ValueError:  # a built-in class without a signature
        return {}
