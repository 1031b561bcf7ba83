"""compare.py: compares runs in a table and a figure."""

from chargpt.runs.discover import common_folder, find_runs
from chargpt.sweeps.compare import compare as compare_runs
from chargpt.utils.paths import resolve_path


def compare(runs: str, folder: str | None) -> None:
    """Compares runs; writes the table and the figures to `folder` (default: the innermost folder with all the runs).

    Raises:
        UserError: `runs` matches no run, or the folder cannot be written.
    """
    directories = find_runs(runs)
    compare_runs(directories, resolve_path("folder", folder) if folder else common_folder(directories))
