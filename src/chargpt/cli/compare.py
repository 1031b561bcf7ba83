"""compare.py: a table and a figure of runs."""

from chargpt.runs.discover import common_folder, find_runs
from chargpt.sweeps.compare import compare as compare_runs
from chargpt.utils.paths import resolve_path


def compare(runs: str, folder: str | None) -> None:
    """Compares the runs that `runs` names; the table and the figure go to `folder`, or to the runs' common folder.

    Raises:
        UserError: `runs` names no run, or the folder cannot be written.
    """
    found = find_runs(runs)
    compare_runs(found, resolve_path("folder", folder) if folder else common_folder(found))
