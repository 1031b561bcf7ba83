"""`rerun=RUN`: repeats a run in a new directory and compares the metrics of both."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

from chargpt.errors import UserError
from chargpt.runs.auto_resume import run_directory_of
from chargpt.runs.directory import RunDirectory
from chargpt.utils.paths import is_folder_name

log = logging.getLogger(__name__)

TIMING_SUFFIXES = ("_seconds", "_second")  # metrics with these suffixes are times or rates
# The entries of provenance.json on which the last bits of the results depend.
ENVIRONMENT_KEYS = ("device", "devices", "threads", "cpu_dtypes", "processor", "versions")


def original_run(rerun: str | None, resume: str) -> RunDirectory | None:
    """The run that is to be repeated; None without `rerun`.

    Args:
        rerun, resume: the settings of these names.

    Raises:
        UserError: the run does not exist, its config is damaged, or `resume` is set as well.
    """
    if not rerun:
        return None
    if resume != "never":
        raise UserError(f"rerun={rerun} starts from step 0: remove resume={resume}")
    directory = RunDirectory(run_directory_of(rerun))
    if not directory.path.is_dir():
        raise UserError(f"rerun={rerun}: there is no such run (searched from {Path.cwd()})")
    if (saved := directory.read_config()) is None:
        raise UserError(f"rerun={directory.path}: its .hydra/config.yaml is missing or damaged")
    if not is_folder_name(str(saved.name)):
        raise UserError(f"rerun={directory.path}: its name {str(saved.name)!r} is not a valid folder name")
    return directory


def copy_record(original: RunDirectory, run: RunDirectory) -> None:
    """Copies the overrides and group choices of the original run."""
    run.hydra.mkdir(exist_ok=True)
    for name in ("hydra.yaml", "overrides.yaml"):
        if (original.hydra / name).is_file():
            shutil.copyfile(original.hydra / name, run.hydra / name)


def saved_threads(directory: RunDirectory, checkpoint: dict[str, Any] | None = None) -> int | None:
    """The number of threads of torch with which a run has trained; None if it is unknown.

    Args:
        checkpoint: that of the run, if there is one; before 0.3 only provenance.json contains the number.
    """
    saved = (checkpoint or {}).get("chargpt", {}).get("threads")
    threads = saved or _read(directory.path / "provenance.json").get("threads")
    return threads if isinstance(threads, int) and threads > 0 else None


def saved_cpu_dtypes(directory: RunDirectory, checkpoint: dict[str, Any] | None = None) -> Any:
    """The `cpu_dtypes` of a run in its checkpoint or provenance.json; None if it has none."""
    saved = (checkpoint or {}).get("chargpt", {}).get("cpu_dtypes")
    return saved or _read(directory.path / "provenance.json").get("cpu_dtypes")


def check_text(original: RunDirectory, sha256: str) -> None:
    """Raises `UserError` if the text is not that of the original run."""
    saved = _read(original.path / "provenance.json").get("corpus_sha256", sha256)
    if saved != sha256:
        raise UserError(
            f"{original.path} was trained on another text: corpus sha256 {str(saved)[:12]}..., now {sha256[:12]}..."
        )


def log_differences(original: RunDirectory, run: RunDirectory) -> None:
    """Logs which metrics differ from the original run, and which differences in the environment may be the cause."""
    old, new = (non_timing_metrics(_read(directory.metrics)) for directory in (original, run))
    if not old:
        log.info("%s is not finished: there are no metrics to compare with", original.path)
        return
    different = [key for key in new if key in old and old[key] != new[key]]  # an older version has fewer metrics
    if not different:
        log.info("all non-timing metrics equal those of %s", original.path)
        return
    shown = ", ".join(f"{key} {new[key]} (original {old[key]})" for key in different[:4])
    log.warning("metrics differ from %s: %s%s", original.path, shown, ", ..." if len(different) > 4 else "")
    old, new = (_read(directory.path / "provenance.json") for directory in (original, run))
    for key in ENVIRONMENT_KEYS:
        if old.get(key) != new.get(key):
            log.warning("%s differs: %s (original %s)", key, new.get(key), old.get(key))


def non_timing_metrics(metrics: dict[str, Any]) -> dict[str, Any]:
    """The entries of metrics.json that are not times or rates: a repeated run reproduces them exactly."""
    return {key: value for key, value in metrics.items() if not key.endswith(TIMING_SUFFIXES)}


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
