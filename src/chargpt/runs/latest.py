"""Finds the latest run. Loading a trained model imports this module, but not Hydra."""

from pathlib import Path

from chargpt.errors import UserError
from chargpt.invocation import command_line
from chargpt.utils.paths import resolve_path


def find_run(setting: str, value: str | Path) -> Path:
    """The path of a run that a setting names: `run=outputs/...`, or `run=latest`.

    `latest` is the run in `outputs` that finished last; for `resume` the one that was active last. The runs of `debug=`
    do not count.

    Raises:
        UserError: there is no such run.
    """
    if not str(value):
        raise UserError(f"{setting} is empty: give the directory of a run, or {setting}=latest")
    if str(value) != "latest":
        return resolve_path(setting, value)
    outputs = Path("outputs")
    file, kind = ("status.json", "run") if setting == "resume" else ("metrics.json", "finished run")
    if latest := newest_run(outputs, file):
        return latest
    raise UserError(
        f"{setting}=latest: there is no {kind} in {outputs}/ (current folder: {Path.cwd()}). Train a model first: "
        f"{command_line('train')}"
    )


def newest_run(folder: Path, file: str) -> Path | None:
    """The run in `folder` whose file was written last, without the runs of `debug=`."""
    found = [p for p in folder.rglob(file) if p.parent != folder and not p.is_relative_to(folder / "debug")]
    return max(found, key=lambda path: path.stat().st_mtime).parent if found else None
