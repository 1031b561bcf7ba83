"""Instantiates the `_target_`s of a config like `hydra.utils.instantiate`, if `Trust` allows them.

Loading a trained model does not import Hydra.
"""

import difflib
import functools
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from chargpt.config.trust import FILE, Trust, locate
from chargpt.errors import UserError

# The components of the config that define a run; its checkpoints contain them.
COMPONENTS = ("model", "data", "optimizer", "schedule", "trainer")
SAVED_KEYS = ("name", "seed", *COMPONENTS)
SAVED_KEYS_SINCE_0_3 = ("monitor", "mode")  # missing in older checkpoints
# Keys that are not arguments. Hydra's `_convert_` has no effect: arguments are always plain data.
HYDRA_KEYS = ("_target_", "_partial_", "_args_", "_recursive_", "_convert_")

# Exceptions that a constructor may raise for invalid values, which may come from an untrusted file.
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
    trust: Trust = FILE,
    **arguments: Any,
) -> Any:
    """Instantiates a config (plain data), nested components first.

    A mapping with `_target_` becomes a call of that name with the other keys as keyword arguments and `_args_` as
    positional arguments; with `_partial_: true` it becomes a partial function. With `_recursive_: false` the arguments
    are passed as they are. Other mappings and lists are instantiated element by element; other values are unchanged.

    Args:
        config: plain data, interpolations resolved.
        path: its key in the complete config, for error messages.
        kind: the required type of the result.
        trust: which targets may be imported.
        arguments: additional keyword arguments for the outermost call.

    Raises:
        UserError: a target that is not allowed or does not exist, arguments that it does not accept, invalid values,
            or a result of another type.
    """
    instance = _instantiate(config, path, trust, **arguments)
    if not isinstance(instance, kind):
        raise UserError(f"{path} must be a {kind.__name__}, not {type(instance).__name__}")
    return instance


def _instantiate(config: Any, path: str, trust: Trust, **arguments: Any) -> Any:
    if isinstance(config, Mapping):
        recursive = config.get("_recursive_", True)
        kwargs = {
            key: _instantiate(value, f"{path}.{key}", trust) if recursive else value
            for key, value in config.items()
            if key not in HYDRA_KEYS
        }
        if "_target_" not in config:
            return kwargs
        target = locate(config["_target_"], path, trust)
        kwargs |= arguments
        args = [_instantiate(value, f"{path}._args_[{i}]", trust) for i, value in enumerate(config.get("_args_", []))]
        if config.get("_partial_", False):
            return _Partial(target, kwargs, path, args)
        return _call(target, kwargs, path, *args)
    if isinstance(config, Sequence) and not isinstance(config, str):
        return [_instantiate(item, f"{path}[{i}]", trust) for i, item in enumerate(config)]
    return config


class _Partial(functools.partial):
    """A partial function that reports invalid arguments as a `UserError` with the path in the config."""

    path: str

    def __new__(cls, target: Any, kwargs: dict[str, Any], path: str, args: Sequence[Any]):
        self = super().__new__(cls, target, *args, **kwargs)
        self.path = path
        return self

    def __reduce__(self) -> tuple[Any, ...]:  # for copies: Lightning's callbacks that average weights copy the module
        return type(self), (self.func, self.keywords, self.path, self.args)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return _call(self.func, self.keywords | kwargs, self.path, *self.args, *args)


def _call(target: Any, kwargs: dict[str, Any], path: str, *args: Any) -> Any:
    name = getattr(target, "__name__", str(target))
    parameters: Mapping[str, inspect.Parameter] = {}
    try:
        signature = inspect.signature(target)
        parameters = signature.parameters
        signature.bind(*args, **kwargs)
    except ValueError:  # some built-in classes have no signature
        pass
    except TypeError as error:
        unknown = [key for key in kwargs if key not in parameters]
        near = difflib.get_close_matches(unknown[0], parameters, n=1) if unknown else []
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UserError(f"{path}: {name} does not accept these settings: {error}{hint}") from error
    try:
        return target(*args, **kwargs)
    except UserError:
        raise
    except Exception as error:  # a class of the user's may raise anything
        raise UserError(f"{path}: {name} failed with these settings: {' '.join(str(error).split())}") from error
