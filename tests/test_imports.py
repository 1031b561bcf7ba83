"""The package has no import cycles, imports only its dependencies, and model/ and data/ import no framework."""

import ast
import re
import sys
import tomllib
from graphlib import CycleError, TopologicalSorter
from importlib.metadata import packages_distributions
from pathlib import Path

from tests.conftest import REPO

SOURCE = REPO / "src"


def module_name(file: Path) -> str:
    parts = file.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(file): file for file in sorted(SOURCE.rglob("*.py"))}


def imported(file: Path) -> set[str]:
    """All names that a file imports, including those inside functions and for type checkers."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} has a relative import"
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                names.add(name if name in MODULES else str(node.module))
    return names


IMPORTS = {name: imported(file) for name, file in MODULES.items()}


def test_there_are_no_import_cycles():
    graph = {name: (names & MODULES.keys()) - {name} for name, names in IMPORTS.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        raise AssertionError(f"import cycle: {' <- '.join(error.args[1])}") from None


def test_an_import_cycle_is_detected():
    graph = {name: names & MODULES.keys() for name, names in IMPORTS.items()}
    assert any("chargpt.errors" in names for names in graph.values())
    graph["chargpt.errors"] = {"chargpt.training.loop"}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError:
        return
    raise AssertionError("errors -> loop -> errors was not detected")


def test_model_and_data_import_neither_lightning_nor_hydra():
    allowed = {"chargpt.data.datamodule"}
    for name, names in IMPORTS.items():
        if name.startswith(("chargpt.model", "chargpt.data")) and name not in allowed:
            frameworks = {module for module in names if module.split(".")[0] in ("lightning", "hydra", "omegaconf")}
            assert not frameworks, f"{name} imports {frameworks}"


def test_only_declared_dependencies_are_imported_and_optional_ones_only_where_they_are_used():
    optional = {"ray": ["hydra_plugins.chargpt_ray_launcher"]}
    optional["optuna"] = ["hydra_plugins.chargpt_optuna_sweeper", "chargpt.sweeps.pruning", "chargpt.sweeps.trials"]
    optional["IPython"] = ["chargpt.training.callbacks.progress_bar"]
    requirements = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]["dependencies"]
    dependencies = {re.split("[^a-z0-9-]", requirement)[0] for requirement in requirements}
    distributions = packages_distributions()
    for name, names in IMPORTS.items():
        packages = {module.split(".")[0] for module in names} - sys.stdlib_module_names - {"chargpt"}
        for package in packages - {package for package, modules in optional.items() if name in modules}:
            found = {distribution.lower() for distribution in distributions[package]}
            assert found & dependencies, f"{name} imports {package}, which no dependency provides"
