"""Compares runs: a table and a figure for each monitor. Called by compare.py and at the end of each sweep."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from types import MappingProxyType
from typing import Any

from matplotlib import style

from chargpt.errors import UserError
from chargpt.invocation import command_line
from chargpt.runs.record import read_run
from chargpt.sweeps.csv_report import table_rows, write_csv
from chargpt.sweeps.naming import folder_name
from chargpt.sweeps.plots.sweep_figure import plot_sweep
from chargpt.sweeps.ranking import Ranking, rank_by_monitor
from chargpt.sweeps.table import print_ranking
from chargpt.utils.atomic_write import atomic_write
from chargpt.utils.paths import printable


def compare(
    runs: Sequence[Path],
    folder: Path,
    name: str = "compare",
    packages: Mapping[Path, Sequence[str]] = MappingProxyType({}),
) -> list[dict[str, Any]]:
    """Prints the tables of the runs, and writes compare.csv and compare.png into `folder`.

    If the runs have different monitors, each monitor has its own table and figure, such as `compare_val_loss.png`.

    Args:
        runs: run directories, in any state.
        name: the name of the files; `sweep` for those of a sweep, which compare.py must not replace.
        packages: the packages that a command must trust to load a run, by its directory.

    Returns:
        The rows of the CSV file.

    Raises:
        UserError: `folder` cannot be written, or there are no runs.
    """
    if not runs:
        raise UserError("there is no run to compare")
    with _report_write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    rankings = rank_by_monitor([read_run(Path(run)) for run in runs])
    rows = table_rows(rankings, folder)
    table, figures = f"{name}.csv", _figure_names(rankings, name)
    try:
        with _report_write_errors(folder):
            write_csv(rows, folder / table)
            for ranking, figure in zip(rankings, figures, strict=True):
                _save_figure(ranking, folder / figure)
    finally:  # print the table even if the files cannot be written
        for ranking in rankings:
            print_ranking(ranking, folder, table, titled=len(rankings) > 1)
    lines: list[tuple[str, Any]] = []
    for ranking in filter(lambda ranking: ranking.scored, rankings):
        best = _short(ranking.scored[0].runs[0].path)
        trust = packages.get(ranking.scored[0].runs[0].path, ())
        lines += [("best", printable(best)), ("sample", printable(command_line("sample", f"run={best}", trust=trust)))]
    lines += [("table", printable(folder / table)), *(("figure", printable(folder / figure)) for figure in figures)]
    for label, text in lines:
        print(f"{label:>7}  {text}")
    return rows


def _short(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _figure_names(rankings: Sequence[Ranking], name: str) -> list[str]:
    """The file names of the figures: of several, each has its monitor in the name, and the mode if it alone differs."""
    if len(rankings) == 1:
        return [f"{name}.png"]
    monitors = [ranking.run_monitor for ranking in rankings]
    names = [monitor.name for monitor in monitors]
    modes = ["" if names.count(monitor.name) == 1 else f"_{monitor.mode}" for monitor in monitors]
    return [f"{name}_{folder_name(metric)}{mode}.png" for metric, mode in zip(names, modes, strict=True)]


@style.context("default")  # a matplotlibrc in the current folder may be a stranger's
def _save_figure(ranking: Ranking, path: Path) -> None:
    content = BytesIO()
    plot_sweep(ranking, path.parent.resolve().name).savefig(content, format="png")
    with atomic_write(path) as file:
        file.write(content.getvalue())


@contextlib.contextmanager
def _report_write_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror}. Choose another: folder=FOLDER") from error
