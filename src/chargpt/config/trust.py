"""Which `_target_`s may be imported: all that this command composes, but only few of those that a file contains.

Checkpoints and run directories contain configs and may be untrusted files. Of these, only targets are imported that
build objects and have no other effect, unless the user names the package that defines the target (`trust=[my_model]`).
"""

import difflib
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
from chargpt.errors import UserError

# Packages and modules of chargpt that only build objects. chargpt.training is not among them: it contains functions
# that write files.
CHARGPT_MODULES = ("chargpt.model", "chargpt.data.datamodule", "chargpt.data.tokenizer")
CHARGPT_MODULES += tuple(f"chargpt.optim.{name}" for name in ("adamw", "lr_schedule", "muon", "sgd", "soap"))
# Of torch, only the classes of modules and optimizers: `torch.hub.load` runs code.
TORCH_PACKAGES = ("torch.nn", "torch.optim")


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
        if not trust.includes(_defining_module(target)):
            raise UserError(
                f"{path}._target_={name!r} is not a class or function that is defined in {', '.join(trust.packages)}"
            )
        return target
    if _is_in(name, CHARGPT_MODULES + TORCH_PACKAGES) and "._" not in name:
        target = _import(name, path, search_here=False)
        if _only_builds(target):
            return target
    if package in ("chargpt", "torch") or not _may_be_trusted(package):
        raise UserError(f"{path}._target_={name!r} is not a component that a file may contain")
    raise UserError(
        f"{path}._target_={name!r} comes from a file, and building it runs the code of {package}. If you trust that "
        f"package, add trust=[{package}]"
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
        if not isinstance(name, str) or not _may_be_trusted(name):
            raise UserError(
                f"trust={name!r}: it must be the name of a package that defines models, or a list: trust=[my_model]"
            )
    return tuple(names)


def _import(name: str, path: str, search_here: bool) -> Any:
    parts = name.split(".")
    here = str(Path.cwd())
    if search_here and importlib.util.find_spec(parts[0]) is None and PathFinder.find_spec(parts[0], [here]):
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
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            raise UserError(f"{path}._target_={name}: {'.'.join(parts[:n])} cannot be imported ({reason})") from error
        for part in parts[n:]:
            owner, target = target, getattr(target, part, None)
            if target is None:
                near = difflib.get_close_matches(part, [public for public in dir(owner) if public[0] != "_"], n=1)
                hint = f"; did you mean {near[0]}?" if near else ""
                raise UserError(f"{path}._target_={name}: there is no {part} in {'.'.join(parts[:n])}{hint}")
        return target
    places = f"the installed packages and {here}" if search_here else "the installed packages"
    raise UserError(f"{path}._target_={name}: there is no module {parts[0]} in {places}")


def _may_be_trusted(package: str) -> bool:
    """Whether it is the name of a package outside the standard library, which can run any command but has no models."""
    parts = package.split(".")
    return all(part.isidentifier() for part in parts) and parts[0] not in sys.stdlib_module_names


def _is_in(name: str, packages: Iterable[str]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def _defining_module(target: Any) -> str:
    """The module that defines a class, function or class method; empty for any other object."""
    if inspect.isclass(target) or inspect.isfunction(target) or inspect.ismethod(target):
        return target.__module__ or ""
    return ""


def _only_builds(target: Any) -> bool:
    """Whether `target` is defined in one of `CHARGPT_MODULES`, or is one of torch's modules or optimizers."""
    module = _defining_module(target)
    if _is_in(module, CHARGPT_MODULES):
        return True
    import torch  # noqa: PLC0415 - takes seconds to import

    return (
        module.startswith(("torch.nn.modules.", "torch.optim."))
        and inspect.isclass(target)
        and issubclass(target, (torch.nn.Module, torch.optim.Optimizer))
    )
