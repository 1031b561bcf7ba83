"""Compares runs: a table and a figure for each monitor. compare.py and every sweep end here."""

import contextlib
from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path

from chargpt.errors import UserError
from chargpt.runs.record import read_run
from chargpt.sweeps.csv_report import write_csv
from chargpt.sweeps.naming import folder_name
from chargpt.sweeps.plots.sweep_figure import plot_sweep
from chargpt.sweeps.ranking import Ranking, rank_apart
from chargpt.sweeps.table import print_ranking
from chargpt.utils.atomic_write import atomic_write
from chargpt.utils.paths import printable


def compare(runs: Sequence[Path], folder: Path) -> None:
    """Prints the tables of the runs, and writes sweep.csv and sweep.png into `folder`.

    Runs of several monitors have a table each, and a picture each, `sweep_val_loss.png`.

    Args:
        runs: run directories, in any state.

    Raises:
        UserError: `folder` cannot be written, or there are no runs.
    """
    if not runs:
        raise UserError("there is no run to compare")
    with _writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    rankings = rank_apart([read_run(Path(run)) for run in runs])
    pictures = _pictures(rankings)
    try:
        with _writing(folder):
            write_csv(rankings, folder / "sweep.csv")
            for ranking, picture in zip(rankings, pictures, strict=True):
                _draw(ranking, folder / picture)
    finally:  # a table that cannot be kept can be read all the same
        for ranking in rankings:
            print_ranking(ranking, folder, titled=len(rankings) > 1)
    for name, file in (("table", "sweep.csv"), *(("picture", picture) for picture in pictures)):
        print(f"{name:>10}  {printable(folder / file)}")


def _pictures(rankings: Sequence[Ranking]) -> list[str]:
    """A file name for each: of several with the name of the monitor, and its mode where the names are the same."""
    if len(rankings) == 1:
        return ["sweep.png"]
    names = [ranking.own.name for ranking in rankings]
    modes = ["" if names.count(ranking.own.name) == 1 else f"_{ranking.own.mode}" for ranking in rankings]
    return [f"sweep_{folder_name(name)}{mode}.png" for name, mode in zip(names, modes, strict=True)]


def _draw(ranking: Ranking, path: Path) -> None:
    content = BytesIO()
    plot_sweep(ranking, path.parent.resolve().name).savefig(content, format="png")
    with atomic_write(path) as file:
        file.write(content.getvalue())


@contextlib.contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror}. Choose another: folder=FOLDER") from error
