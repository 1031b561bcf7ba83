"""Compares runs: a table and a figure for each monitor. Called by compare.py and at the end of each sweep."""

import contextlib
from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from matplotlib import style

from chargpt.errors import UserError
from chargpt.runs.record import read_run
from chargpt.sweeps.csv_report import table_rows, write_csv
from chargpt.sweeps.naming import folder_name
from chargpt.sweeps.plots.sweep_figure import plot_sweep
from chargpt.sweeps.ranking import Ranking, rank_by_monitor
from chargpt.sweeps.table import print_ranking
from chargpt.utils.atomic_write import atomic_write
from chargpt.utils.paths import printable


def compare(runs: Sequence[Path], folder: Path) -> list[dict[str, Any]]:
    """Prints the tables of the runs, and writes sweep.csv and sweep.png into `folder`.

    If the runs have different monitors, each monitor has its own table and figure, such as `sweep_val_loss.png`.

    Args:
        runs: run directories, in any state.

    Returns:
        The rows of sweep.csv.

    Raises:
        UserError: `folder` cannot be written, or there are no runs.
    """
    if not runs:
        raise UserError("there is no run to compare")
    with _report_write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    rankings = rank_by_monitor([read_run(Path(run)) for run in runs])
    rows = table_rows(rankings, folder)
    figures = _figure_names(rankings)
    try:
        with _report_write_errors(folder):
            write_csv(rows, folder / "sweep.csv")
            for ranking, figure in zip(rankings, figures, strict=True):
                _save_figure(ranking, folder / figure)
    finally:  # print the table even if the files cannot be written
        for ranking in rankings:
            print_ranking(ranking, folder, titled=len(rankings) > 1)
    for name, file in (("table", "sweep.csv"), *(("figure", figure) for figure in figures)):
        print(f"{name:>10}  {printable(folder / file)}")
    return rows


def _figure_names(rankings: Sequence[Ranking]) -> list[str]:
    """The file names of the figures: of several, each has its monitor in the name, and the mode if it alone differs."""
    if len(rankings) == 1:
        return ["sweep.png"]
    monitors = [ranking.run_monitor for ranking in rankings]
    names = [monitor.name for monitor in monitors]
    modes = ["" if names.count(monitor.name) == 1 else f"_{monitor.mode}" for monitor in monitors]
    return [f"sweep_{folder_name(name)}{mode}.png" for name, mode in zip(names, modes, strict=True)]


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
