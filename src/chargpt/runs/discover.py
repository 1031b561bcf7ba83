"""Finds run directories by path, folder, glob, or a list of these."""

import glob
import os
from pathlib import Path

from chargpt.errors import UserError
from chargpt.invocation import command_line
from chargpt.runs.record import is_run
from chargpt.utils.paths import resolve_path


def find_runs(spec: str) -> list[Path]:
    """The run directories that `spec` selects, without duplicates, sorted by path.

    Args:
        spec: a run directory, a folder with runs at any depth, a glob, or a list `[one,another,...]`.

    Raises:
        UserError: an element of `spec` selects no run.
    """
    if not spec.strip():
        raise UserError("runs is empty: pass a run, a folder of runs, a glob, or a list, runs=[one,another]")
    result: dict[Path, Path] = {}
    for item in _items(spec):
        paths = _matches(item)
        if not paths:
            problem = "matches nothing" if glob.has_magic(item) else "does not exist"
            raise UserError(
                f"runs: {item} {problem} (searched from {Path.cwd()}). Pass a run, a folder, a glob or a list"
            )
        runs = [run for path in paths for run in _runs_below(path)]
        if not runs:
            raise UserError(
                f"runs: {item} contains no run (a run directory contains status.json or metrics.json). Name the folder "
                f"of the runs, runs=FOLDER, or train first: {command_line('train', '-m', 'model.n_layer=2,4')}"
            )
        result |= {run.resolve(): run for run in reversed(runs)}
    return sorted(result.values())


def common_folder(runs: list[Path]) -> Path:
    """The innermost folder that contains all runs."""
    folder = Path(os.path.commonpath([run.absolute().parent for run in runs]))
    return folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder


def _items(spec: str) -> list[str]:
    """The elements of `[one,another]`. Names of runs may contain commas: an element is the longest existing name."""
    text = spec.strip()
    if text[0] != "[" or text[-1] != "]" or Path(text).exists():
        return [spec]
    pieces, items, start = text[1:-1].split(","), [], 0
    while start < len(pieces):
        ends = range(len(pieces), start, -1)
        names = [_unquote(",".join(pieces[start:end])) for end in ends]
        chosen = next((n for n, name in enumerate(names) if name and _matches(name)), len(names) - 1)
        if names[chosen]:
            items.append(names[chosen])
        start = ends[chosen]
    if not items:
        raise UserError(f"runs={spec} is an empty list: pass at least one run, runs=[one,another]")
    return items


def _unquote(name: str) -> str:
    name = name.strip()
    return name[1:-1] if len(name) > 1 and name[0] == name[-1] and name[0] in "'\"" else name


def _matches(item: str) -> list[Path]:
    """The path that `item` names, or the paths that it matches as a glob."""
    try:
        path = resolve_path("runs", item)
    except UserError:  # not a valid path, for example too long
        return []
    if path.exists():
        return [path]
    if not glob.has_magic(item):
        return []
    return [Path(match) for match in glob.glob(str(path), recursive=True)]  # noqa: PTH207 - absolute ones too


def _runs_below(path: Path) -> list[Path]:
    if path.is_file():  # from a glob such as outputs/**/metrics.json
        return [path.parent] if is_run(path.parent) else []
    if is_run(path):
        return [path]
    runs = []
    for folder, subfolders, _ in os.walk(path):
        if is_run(Path(folder)):
            runs.append(Path(folder))
            subfolders.clear()
    return runs
