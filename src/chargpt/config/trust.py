"""Which `_target_`s may be imported: all that this command composes, but only few of those that a file contains.

Checkpoints and run directories contain configs and may be untrusted files. Of these, only targets are imported that
build objects and have no other effect, unless the user names the package that defines the target (`trust=[my_model]`).
"""

import difflib
import functools
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from chargpt.checkpoint.migrations import migrate_target
from chargpt.errors import UserError, describe_error

# Packages and modules of chargpt that only build objects. chargpt.training is not among them: it contains functions
# that write files.
CHARGPT_MODULES = ("chargpt.model", "chargpt.data.datamodule", "chargpt.data.tokenizer")
CHARGPT_MODULES += tuple(f"chargpt.optim.{name}" for name in ("adamw", "lr_schedule", "muon", "sgd", "soap"))
# Of torch, only the classes of modules and optimizers: `torch.hub.load` runs code.
TORCH_PACKAGES = ("torch.nn", "torch.optim")
# Packages that run code of other packages: what is safe in them is already allowed.
_NEVER_TRUSTED = ("chargpt", "hydra", "lightning", "torch")
# Of transformers, only models and their configs: `from_pretrained` runs code of a downloaded folder.
_TRANSFORMERS = "transformers"
_TRANSFORMERS_CLASSES = ("PreTrainedModel", "PreTrainedConfig", "PretrainedConfig")


@dataclass(frozen=True)
class Trust:
    """What may be imported.

    Attributes:
        everything: any importable name, for a config that this command composes.
        targets: names that this command composes itself, and the classes whose methods they are.
        packages: packages whose classes and functions may be used by a file; each may be a submodule.
    """

    everything: bool = False
    targets: frozenset[str] = frozenset()
    packages: tuple[str, ...] = ()

    def is_composed(self, name: str) -> bool:
        return self.everything or name in self.targets or any(t.startswith(f"{name}.") for t in self.targets)

    def includes(self, module: str) -> bool:
        """Whether a module is one of the trusted packages, or in one."""
        return _is_in(module, self.packages)


COMPOSED = Trust(everything=True)
FILE = Trust()


def locate(name: Any, path: str, trust: Trust = FILE) -> Any:
    """Imports the class or function of a `_target_`.

    A package that is not installed is searched in the current directory, last, and only if it is trusted.

    Args:
        path: its key in the complete config, for error messages.

    Raises:
        UserError: it is not allowed, does not exist, or cannot be imported.
    """
    if not isinstance(name, str):
        raise UserError(f"{path}._target_={name!r}: it must be the import path of a class or function")
    name = migrate_target(name)
    package = name.partition(".")[0]
    if trust.is_composed(name):
        target = _import(name, path, search_here=True)
        if not callable(target):
            raise UserError(f"{path}._target_={name} is not callable")
        return target
    if trust.includes(name):
        target = _import(name, path, search_here=True)
        module = _defining_module(target)
        if not trust.includes(module):
            raise UserError(
                f"{path}._target_={name!r} is not a class or function that is defined in {', '.join(trust.packages)}"
                f"{f', but in {module}' if module else ''}"
            )
        if package == _TRANSFORMERS and not _is_transformers_class(target):
            raise UserError(f"{path}._target_={name!r} is not the class of a model or of its config")
        return target
    if _is_in(name, CHARGPT_MODULES + TORCH_PACKAGES) and "._" not in name:
        target = _import(name, path, search_here=False)
        if _only_builds(target, path):
            return target
    if not _may_be_trusted(package):
        raise UserError(f"{path}._target_={name!r} is not a component that a file may contain")
    raise UserError(
        f"{path}._target_={name!r} comes from a file, and building it runs the code of {package}. If you trust that "
        f"package, add trust=[{','.join([package, *trust.packages])}]"
    )


def targets_of(config: Any) -> Iterator[str]:
    """The names of all `_target_`s in a config (plain data)."""
    if isinstance(config, dict):
        if isinstance(name := config.get("_target_"), str):
            yield migrate_target(name)
        config = list(config.values())
    if isinstance(config, list):
        for value in config:
            yield from targets_of(value)


def packages_to_trust(config: Any) -> list[str]:
    """The packages that a user must trust to build a config (plain data) that comes from a file."""
    listed = CHARGPT_MODULES + TORCH_PACKAGES
    return sorted({name.partition(".")[0] for name in targets_of(config) if not _is_in(name, listed)})


def trusted_packages(setting: str | Iterable[str] | None) -> tuple[str, ...]:
    """The packages of the setting `trust`: a name or a list of names.

    Raises:
        UserError: an entry is not the name of a package.
    """
    names = [setting] if isinstance(setting, str) else list(setting or ())
    for name in names:
        if isinstance(name, str) and name.endswith(".py"):
            raise UserError(f"trust={name}: it must be the name of a package or module: trust={name[:-3]}")
        if not isinstance(name, str) or not _may_be_trusted(name):
            raise UserError(
                f"trust={name!r}: it must be the name of a package that defines models, or a list: trust=[my_model]"
            )
    return tuple(names)


def _import(name: str, path: str, search_here: bool) -> Any:
    parts = name.split(".")
    if len(parts) == 1:
        raise UserError(f"{path}._target_={name}: the class or function is missing: {name}.NAME")
    here = str(Path.cwd())
    search_here = search_here and parts[0] != _TRANSFORMERS  # named in conf/, and optional
    if search_here and not _is_installed(parts[0]) and PathFinder.find_spec(parts[0], [here]):
        # It stays on the path, because the package may import its submodules later. From then on, other modules that
        # are not installed are found here too; they have the same author as the package, whose code runs anyway.
        sys.path.append(here)
        importlib.invalidate_caches()
    for n in range(len(parts) - 1, 0, -1):
        try:
            target = importlib.import_module(".".join(parts[:n]))
        except ModuleNotFoundError as error:
            if error.name and not name.startswith(f"{error.name}.") and error.name != name:
                raise UserError(f"{path}._target_={name} requires {error.name}, which is not installed") from error
            continue
        except Exception as error:  # a module of the user's may raise anything
            reason = describe_error(error)
            raise UserError(f"{path}._target_={name}: {'.'.join(parts[:n])} cannot be imported ({reason})") from error
        for part in parts[n:]:
            owner = target
            try:
                target = getattr(target, part, None)
            except Exception as error:  # an object may compute its attributes
                raise UserError(f"{path}._target_={name}: {error}") from error
            if target is None:
                near = difflib.get_close_matches(part, [public for public in dir(owner) if public[0] != "_"], n=1)
                hint = f"; did you mean {near[0]}?" if near else ""
                file = getattr(sys.modules[parts[0]], "__file__", None)
                shown = f" ({file})" if file and parts[0] not in ("chargpt", "torch") else ""
                raise UserError(f"{path}._target_={name}: there is no {part} in {'.'.join(parts[:n])}{hint}{shown}")
        return target
    places = f"the installed packages and {here}" if search_here else "the installed packages"
    raise UserError(f"{path}._target_={name}: there is no module {parts[0]} in {places}")


def _is_installed(package: str) -> bool:
    """Whether a package can be imported; False for a folder without `__init__.py`, to which others may be added."""
    if package in sys.modules:
        return True  # such as __main__
    spec = importlib.util.find_spec(package)
    return spec is not None and spec.origin is not None


def _may_be_trusted(package: str) -> bool:
    """Whether it is the name of a package that may be trusted: the standard library, for one, can run any command."""
    parts = package.split(".")
    never = parts[0] in sys.stdlib_module_names or parts[0] in _NEVER_TRUSTED
    return all(part.isidentifier() for part in parts) and not never


def _is_in(name: str, packages: Iterable[str]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def _defining_module(target: Any) -> str:
    """The module that defines a class, function or class method, or what it wraps; empty for any other object."""
    while isinstance(target, functools.partial):
        target = target.func
    try:
        target = inspect.unwrap(target) if callable(target) else target
    except ValueError:  # an object that wraps itself
        return ""
    if inspect.isclass(target) or inspect.isfunction(target) or inspect.ismethod(target):
        return target.__module__ or ""
    return ""


def _is_transformers_class(target: Any) -> bool:
    return inspect.isclass(target) and any(base.__name__ in _TRANSFORMERS_CLASSES for base in target.__mro__)


def _only_builds(target: Any, path: str) -> bool:
    """Whether `target` is defined in one of `CHARGPT_MODULES`, or is one of torch's modules or optimizers.

    A method that is called with an object of the file's choice is not, nor a corpus where no data set belongs.
    """
    module = _defining_module(target)
    if inspect.isfunction(target) and "." in target.__qualname__:
        return False
    if module == "chargpt.data.datamodule" and not path.startswith("data"):
        return False
    if _is_in(module, CHARGPT_MODULES):
        return True
    import torch  # noqa: PLC0415 - takes seconds to import

    return (
        module.startswith(("torch.nn.modules.", "torch.optim."))
        and inspect.isclass(target)
        and issubclass(target, (torch.nn.Module, torch.optim.Optimizer))
    )
