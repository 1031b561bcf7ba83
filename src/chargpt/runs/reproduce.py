"""`rerun=RUN`: a run once more, in a directory of its own, and whether it came out the same."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

from chargpt.errors import UserError
from chargpt.runs.auto_resume import run_directory_of
from chargpt.runs.directory import RunDirectory

log = logging.getLogger(__name__)

TIMING_SUFFIXES = ("_seconds", "_second")  # how the names of figures end that are times, or made of them
# What of provenance.json decides about the last bits.
ENVIRONMENT_KEYS = ("device", "devices", "threads", "processor", "versions")


def original_run(rerun: str | None, resume: str) -> RunDirectory | None:
    """The run that is to be repeated; None if none is.

    Args:
        rerun, resume: the settings of these names.

    Raises:
        UserError: there is none, its config is damaged, or `resume` is asked for as well.
    """
    if not rerun:
        return None
    if resume != "never":
        raise UserError(f"rerun={rerun} begins anew: leave resume={resume} out")
    directory = RunDirectory(run_directory_of(rerun))
    if not directory.path.is_dir():
        raise UserError(f"rerun={rerun}: there is no run there (looked from {Path.cwd()})")
    if (saved := directory.read_config()) is None:
        raise UserError(f"rerun={directory.path}: its .hydra/config.yaml is missing or damaged")
    if not (name := str(saved.name)) or Path(name).name != name:
        raise UserError(f"rerun={directory.path}: its name {name!r} is not that of a folder")
    return directory


def copy_record(of: RunDirectory, to: RunDirectory) -> None:
    """The words and choices that the first one began with are those of this one."""
    to.hydra.mkdir(exist_ok=True)
    for name in ("hydra.yaml", "overrides.yaml"):
        if (of.hydra / name).is_file():
            shutil.copyfile(of.hydra / name, to.hydra / name)


def check_text(of: RunDirectory, sha256: str) -> None:
    """Raises `UserError` if the text has been changed since."""
    before = _read(of.path / "provenance.json").get("corpus_sha256", sha256)
    if before != sha256:
        raise UserError(
            f"{of.path} was trained on another text: corpus sha256 {str(before)[:12]}..., now {sha256[:12]}..."
        )


def log_differences(of: RunDirectory, run: RunDirectory) -> None:
    """Says which figures came out otherwise than in the first run, and what was otherwise from the start."""
    before, now = (non_timing_metrics(_read(directory.metrics)) for directory in (of, run))
    if not before:
        log.info("%s was not finished: there is nothing to compare with", of.path)
        return
    other = [key for key in now if key in before and before[key] != now[key]]  # an older version had fewer
    if not other:
        log.info("every figure is that of %s", of.path)
        return
    shown = ", ".join(f"{key} {now[key]} (there {before[key]})" for key in other[:4])
    log.warning("otherwise than in %s: %s%s", of.path, shown, ", ..." if len(other) > 4 else "")
    one, two = (_read(directory.path / "provenance.json") for directory in (of, run))
    for key in ENVIRONMENT_KEYS:
        if one.get(key) != two.get(key):
            log.warning("which had %s %s, and not %s", key, one.get(key), two.get(key))


def non_timing_metrics(metrics: dict[str, Any]) -> dict[str, Any]:
    """Those of metrics.json that are no times: a repeated run has them equal."""
    return {key: value for key, value in metrics.items() if not key.endswith(TIMING_SUFFIXES)}


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
