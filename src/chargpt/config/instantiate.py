"""A config's `_target_`s into objects, as `hydra.utils.instantiate` does: of any class, or only of known parts.

Configs travel inside checkpoints, which come from strangers too: what is built of them must be named in the
allow-list, and nothing in a config is looked up anywhere else. So a trained model needs no Hydra to be used.
Loggers and callbacks never come from a file, and may be anything that can be imported.
"""

import difflib
import functools
import importlib
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from chargpt.checkpoint.migrations import migrate_target
from chargpt.errors import UserError

# The parts of the config that say what a run is, and travel in its checkpoints.
COMPONENTS = ("model", "data", "optimizer", "schedule", "trainer")
SAVED_KEYS = ("name", "seed", *COMPONENTS)
SAVED_KEYS_SINCE_0_3 = ("monitor", "mode")  # 0.3: an older checkpoint has none
# Modules that build and do nothing else: from all of chargpt.training a checkpoint could write files.
ALLOWED_PREFIXES = ("chargpt.data.datamodule.", "chargpt.data.tokenizer.", "chargpt.model.")
ALLOWED_PREFIXES += (
    "chargpt.optim.adamw.",
    "chargpt.optim.lr_schedule.",
    "chargpt.optim.muon.",
    "chargpt.optim.sgd.",
)
ALLOWED_PREFIXES += ("chargpt.optim.soap.", "torch.nn.", "torch.optim.")

# Keys that are not arguments. Hydra's `_convert_` has no effect: arguments are plain data always.
HYDRA_KEYS = ("_target_", "_partial_", "_args_", "_recursive_", "_convert_")

# How a part refuses values of a wrong kind, which may come from a stranger's file.
CONSTRUCTOR_ERRORS = (
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    RuntimeError,
    TypeError,
    ValueError,
)


def instantiate(
    config: Any,
    path: str = "config",
    kind: type = object,
    trusted: bool = False,
    **arguments: Any,
) -> Any:
    """The object that `config` (plain data) describes, its parts built first.

    A mapping with `_target_` becomes a call of that name with the other keys as keyword arguments, or, with
    `_partial_: true`, a function that still waits for the rest; `_args_` are its positional arguments. With
    `_recursive_: false` its arguments are left as they are. Other mappings and lists are built element by element,
    everything else is itself.

    Args:
        config: plain data, interpolations resolved.
        path: where in the whole config this stands, for messages.
        kind: what it must come to.
        trusted: whether any target may be imported: only for what the user has typed or written.
        arguments: further keyword arguments for the outermost call.

    Raises:
        UserError: a target that is not allowed or does not exist, arguments that it does not take, values that
            it refuses, or a thing of another kind.
    """
    built = _instantiate(config, path, trusted, **arguments)
    if not isinstance(built, kind):
        raise UserError(f"{path} is a {type(built).__name__}, and must be a {kind.__name__}")
    return built


def _instantiate(config: Any, path: str, trusted: bool, **arguments: Any) -> Any:
    if isinstance(config, Mapping):
        recursive = config.get("_recursive_", True)
        parts = {
            key: _instantiate(value, f"{path}.{key}", trusted) if recursive else value
            for key, value in config.items()
            if key not in HYDRA_KEYS
        }
        if "_target_" not in config:
            return parts
        target = locate(config["_target_"], path, trusted)
        parts |= arguments
        given = [
            _instantiate(value, f"{path}._args_[{i}]", trusted) for i, value in enumerate(config.get("_args_", []))
        ]
        if config.get("_partial_", False):
            return _Partial(target, parts, path, given)
        return _call(target, parts, path, *given)
    if isinstance(config, Sequence) and not isinstance(config, str):
        return [_instantiate(item, f"{path}[{i}]", trusted) for i, item in enumerate(config)]
    return config


class _Partial(functools.partial):
    """A partial whose refusal of its arguments is told as a mistake in the config."""

    def __new__(cls, target: Any, parts: dict[str, Any], path: str, given: Sequence[Any] = ()):
        self = super().__new__(cls, target, *given, **parts)
        self.path = path
        return self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return _call(self.func, self.keywords | kwargs, self.path, *self.args, *args)


def locate(name: Any, path: str, trusted: bool = False) -> Any:
    """What a `_target_` names. Raises `UserError` if it may not be built, or does not exist."""
    name = migrate_target(name) if isinstance(name, str) else name
    if not isinstance(name, str) or not (trusted or (name.startswith(ALLOWED_PREFIXES) and "._" not in name)):
        raise UserError(
            f"{path}._target_={name!r} is not one of the parts that may be built: they begin with "
            f"{', '.join(prefix + '*' for prefix in ALLOWED_PREFIXES)}"
        )
    pieces = name.split(".")
    for cut in range(len(pieces) - 1, 0, -1):
        try:
            found = importlib.import_module(".".join(pieces[:cut]))
        except ModuleNotFoundError as error:
            if error.name and not name.startswith(f"{error.name}.") and error.name != name:
                raise UserError(f"{path}._target_={name} needs {error.name}, which is not installed") from error
            continue
        for piece in pieces[cut:]:
            owner, found = found, getattr(found, piece, None)
            if found is None:
                near = difflib.get_close_matches(piece, [n for n in dir(owner) if n[0] != "_"], n=1)
                hint = f"; did you mean {near[0]}?" if near else ""
                raise UserError(f"{path}._target_={name}: there is no {piece} in {owner.__name__}{hint}")
        if not (callable(found) if trusted else _is_component(found)):
            raise UserError(f"{path}._target_={name} is not a part that can be built")
        return found
    raise UserError(f"{path}._target_={name}: there is no such module")


def _is_component(found: Any) -> bool:
    """Whether it is something of ours that can be called, or one of torch's layers or optimizers."""
    home = getattr(found, "__module__", None) or ""
    if home.startswith("chargpt."):
        return callable(found)
    import torch

    kinds = (torch.nn.Module, torch.optim.Optimizer)
    return (
        home.startswith(("torch.nn.modules.", "torch.optim.")) and inspect.isclass(found) and issubclass(found, kinds)
    )


def _call(target: Any, parts: dict[str, Any], path: str, *args: Any) -> Any:
    name = getattr(target, "__name__", str(target))
    try:
        signature = inspect.signature(target)
        signature.bind(*args, **parts)
    except ValueError:  # built-in classes have none
        pass
    except TypeError as error:
        unknown = [k for k in parts if k not in signature.parameters]
        near = difflib.get_close_matches(unknown[0], signature.parameters, n=1) if unknown else []
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UserError(f"{path}: {name} does not take these settings: {error}{hint}") from error
    try:
        return target(*args, **parts)
    except UserError:
        raise
    except CONSTRUCTOR_ERRORS as error:
        raise UserError(f"{path}: {name} refuses its settings: {' '.join(str(error).split())}") from error
