"""The package's modules import each other in one direction, and the model needs neither Lightning nor Hydra."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

from tests.conftest import REPO

SOURCE = REPO / "src"


def module_name(file: Path) -> str:
    parts = file.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(file): file for file in sorted(SOURCE.rglob("*.py"))}


def imported(file: Path) -> set[str]:
    """All names that a file imports anywhere: also within functions, and for type checkers alone."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} imports relative to itself"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                found.add(whole if whole in MODULES else str(node.module))
    return found


IMPORTS = {name: imported(file) for name, file in MODULES.items()}


def test_no_module_imports_one_that_imports_it():
    graph = {name: (found & MODULES.keys()) - {name} for name, found in IMPORTS.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        raise AssertionError(f"a cycle of imports: {' <- '.join(error.args[1])}") from None


def test_a_cycle_would_be_found():
    graph = {name: found & MODULES.keys() for name, found in IMPORTS.items()}
    assert any("chargpt.errors" in found for found in graph.values())
    graph["chargpt.errors"] = {"chargpt.training.loop"}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError:
        return
    raise AssertionError("errors -> run -> errors was not found")


def test_model_and_data_import_neither_lightning_nor_hydra():
    allowed = {"chargpt.data.datamodule"}
    for name, found in IMPORTS.items():
        if name.startswith(("chargpt.model", "chargpt.data")) and name not in allowed:
            frameworks = {word for word in found if word.split(".")[0] in ("lightning", "hydra", "omegaconf")}
            assert not frameworks, f"{name} imports {frameworks}"
