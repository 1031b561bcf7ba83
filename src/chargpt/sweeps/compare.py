"""compare.py: many runs as one table and one picture, which a sweep ends in too."""

import contextlib
from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path

from chargpt.errors import Mistake
from chargpt.sweeps.find import common_folder, find_runs
from chargpt.sweeps.pictures import draw_sweep
from chargpt.sweeps.ranking import Ranking, rank
from chargpt.sweeps.record import write_csv
from chargpt.sweeps.recorded import read_any
from chargpt.sweeps.terminal import print_ranking
from chargpt.typed_path import shown, typed_path
from chargpt.whole import whole


def compare(runs: Sequence[Path], folder: Path) -> None:
    """Prints the table of the runs, and writes sweep.csv and sweep.png into `folder`.

    Args:
        runs: run directories, in any state.

    Raises:
        Mistake: `folder` cannot be written, or there are no runs.
    """
    if not runs:
        raise Mistake("there is no run to compare")
    with _writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    ranking = rank([read_any(Path(run)) for run in runs])
    try:
        with _writing(folder):
            _write(ranking, folder)
    finally:  # a table that cannot be kept can be read all the same
        print_ranking(ranking, folder)
    for name, file in (("table", "sweep.csv"), ("picture", "sweep.png")):
        print(f"{name:>10}  {shown(folder / file)}")


def _write(ranking: Ranking, folder: Path) -> None:
    write_csv(ranking, folder / "sweep.csv")
    content = BytesIO()
    draw_sweep(ranking, folder.resolve().name).savefig(content, format="png")
    with whole(folder / "sweep.png") as file:
        file.write(content.getvalue())


@contextlib.contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise Mistake(f"{folder} cannot be written: {error.strerror}. Choose another: folder=FOLDER") from error


def compare_asked(runs: str, folder: str | None) -> None:
    """`compare` as one types it. Raises `Mistake` where no run is meant."""
    found = find_runs(runs)
    compare(found, typed_path("folder", folder) if folder else common_folder(found))
