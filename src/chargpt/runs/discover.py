"""Which run directories are meant: a run, a folder of runs, a glob, or a list of these."""

import glob
import os
from pathlib import Path

from chargpt.errors import UserError
from chargpt.runs.record import is_run
from chargpt.utils.paths import resolve_path


def find_runs(asked: str) -> list[Path]:
    """The run directories that `asked` means, each once, sorted by path.

    Args:
        asked: a run directory, a folder with runs at any depth below it, a glob, or `[one,another,...]`.

    Raises:
        UserError: one of them means no run at all.
    """
    if not asked.strip():
        raise UserError("runs is empty: give a run, a folder with runs below it, a glob, or a list, runs=[one,another]")
    found: dict[Path, Path] = {}
    for item in _items(asked):
        places = _places(item)
        if not places:
            what = "matches nothing" if _is_glob(item) else "is not there"
            raise UserError(f"runs: {item} {what} (looked from {Path.cwd()}). Give a run, a folder, a glob or a list")
        runs = [run for place in places for run in _below(place)]
        if not runs:
            raise UserError(
                f"runs: there is no run in {item} (a run has status.json or metrics.json in its directory). "
                f"Train some first, python train.py -m model.n_layer=2,4, or say where they are, runs=FOLDER"
            )
        found |= {run.resolve(): run for run in reversed(runs)}
    return sorted(found.values())


def common_folder(runs: list[Path]) -> Path:
    """The innermost folder that holds all the runs."""
    folder = Path(os.path.commonpath([run.absolute().parent for run in runs]))
    return folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder


def _items(asked: str) -> list[str]:
    """The elements of `[one,another]`. A name with a comma in it is one name wherever that name is there."""
    text = asked.strip()
    if text[0] != "[" or text[-1] != "]" or Path(text).exists():
        return [asked]
    pieces, items, start = text[1:-1].split(","), [], 0
    while start < len(pieces):
        ends = range(len(pieces), start, -1)
        names = [_bare(",".join(pieces[start:end])) for end in ends]
        taken = next((n for n, name in enumerate(names) if name and _places(name)), len(names) - 1)
        if names[taken]:
            items.append(names[taken])
        start = ends[taken]
    if not items:
        raise UserError(f"runs={asked} is an empty list: runs=[one,another]")
    return items


def _bare(word: str) -> str:
    word = word.strip()
    return word[1:-1] if len(word) > 1 and word[0] == word[-1] and word[0] in "'\"" else word


def _places(item: str) -> list[Path]:
    """The folders that are called so, or that the glob matches."""
    try:
        path = resolve_path("runs", item)
    except UserError:  # a name that no file can have
        return []
    if path.exists():
        return [path]
    if not _is_glob(item):
        return []
    return [Path(match) for match in glob.glob(str(path), recursive=True)]  # noqa: PTH207 - absolute ones too


def _is_glob(item: str) -> bool:
    return glob.has_magic(item)


def _below(place: Path) -> list[Path]:
    if place.is_file():  # a glob like outputs/**/metrics.json
        return [place.parent] if is_run(place.parent) else []
    if is_run(place):
        return [place]
    found = []
    for folder, inner, _ in os.walk(place):
        if is_run(Path(folder)):
            found.append(Path(folder))
            inner.clear()
    return found
