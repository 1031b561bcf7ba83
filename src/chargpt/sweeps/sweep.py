"""Runs a sweep: composes its overrides, runs the jobs, and compares the runs."""

import contextlib
import logging
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob
from hydra.errors import HydraException
from hydra.types import RunMode

from chargpt.config.overrides import short_error
from chargpt.errors import ExitCode, Interrupted, UserError
from chargpt.invocation import program_name
from chargpt.runs.directory import RunDirectory
from chargpt.runs.discover import common_folder
from chargpt.sweeps.job import SAFE_PATH_ENV, Job
from chargpt.utils.atomic_write import atomic_write_text

log = logging.getLogger(__name__)

MULTIRUN = "multirun.yaml"  # Hydra's record of a sweep
LECTURE = ("bigram", "head", "multi_head", "feed_forward", "residual", "layer_norm", "scaled_up_cpu", "scaled_up")


def sweep(
    config_name: str, overrides: list[str], flags: list[str]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Runs every unfinished job, even if other jobs fail, and then compares the runs.

    Args:
        overrides: the checked overrides of the command line.
        flags: Hydra's flags for each job.

    Returns:
        The results of the jobs, as `Job` returns them; and the rows of sweep.csv, empty if all jobs were refused.

    Raises:
        UserError: Hydra or a launcher reports an error.
        Interrupted: a signal arrived; the same command resumes the sweep.
    """
    created: list[Path] = []
    overrides = in_lecture_order(overrides)
    try:
        loader = GlobalHydra.instance().config_loader()
        config = loader.load_configuration(config_name, overrides, RunMode.MULTIRUN)
        HydraConfig.instance().set_config(config)  # hydra.sweep.dir contains ${hydra:...}
        overrides = [*overrides, *default_overrides(overrides, HydraConfig.get().sweeper.get("params") or {})]
        folder = Path(HydraConfig.get().sweep.dir)
        created = [path for path in (folder, *folder.parents) if not path.exists()]
        multirun = _read(folder / MULTIRUN)
        app = GlobalHydra.instance().hydra
        assert app is not None  # the caller has initialized Hydra
        job = Job(flags)
        # Launchers start processes as `python -m`, which import modules from the current directory: it may be a
        # downloaded one.
        os.environ[SAFE_PATH_ENV] = "1"
        batches = app.multirun(config_name, job, overrides)
    except HydraException as error:
        _remove_if_unused(created)
        raise UserError(short_error(error)) from error
    except (KeyboardInterrupt, SystemExit) as error:
        if isinstance(error, SystemExit) and error.code != ExitCode.INTERRUPTED:
            raise
        raise Interrupted("the sweep was interrupted. Run the same command again to resume it") from None
    results = [job.return_value for batch in batches for job in batch]
    codes = [result["code"] for result in results]
    if set(codes) == {ExitCode.USER_ERROR}:
        _remove_if_unused(created)
        return results, []
    from chargpt.sweeps.compare import compare  # noqa: PLC0415 - matplotlib takes a second to import, and the jobs come first

    # The directory of a refused job is empty, or contains a run with other settings, such as a length.
    refused = [result for result in results if result["code"] == ExitCode.USER_ERROR]
    others = [path for result in refused if RunDirectory(path := Path(result["directory"])).metrics.exists()]
    runs = [path for result in results if (path := Path(result["directory"])) in others or result not in refused]
    _move_multirun(folder, common_folder(runs), multirun, created)
    packages = {Path(result["directory"]): result["packages"] for result in results}
    rows = compare(runs, common_folder(runs), "sweep", packages)
    for result in refused:
        sys.stderr.write(f"refused: {Path(result['directory']).name}: {result['reason']}\n")
    if any(codes):
        hint = ". name=NAME gives a sweep with other settings its own folder" if others else ""
        sys.stderr.write(f"{program_name()}: {sum(map(bool, codes))} of {len(codes)} jobs did not succeed{hint}\n")
    return results, rows


def in_lecture_order(overrides: list[str]) -> list[str]:
    """The overrides, with a glob over `lecture` replaced by its models in the order of the lecture.

    Hydra would run them in alphabetical order.
    """
    parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())

    def expand(text: str) -> str:
        (override,) = parser.parse_overrides([text])  # `parse_override` leaves out the config loader
        if override.key_or_group != "lecture" or not isinstance(override.value(), Glob):
            return text
        names = sorted(override.sweep_string_iterator())
        names.sort(key=lambda name: LECTURE.index(name) if name in LECTURE else len(LECTURE))
        return f"lecture={','.join(names)}" if names else text

    return [*map(expand, overrides)]


def _read(file: Path) -> bytes | None:
    with contextlib.suppress(OSError):
        return file.read_bytes()
    return None


def _move_multirun(folder: Path, runs_folder: Path, before: bytes | None, created: list[Path]) -> None:
    """Moves the multirun.yaml of this sweep to the folder of its runs.

    Hydra writes it to the `hydra.sweep.dir` of the config without the swept groups, and a group such as `lecture` may
    select another folder.

    Args:
        before: the content of the file before this sweep; another sweep may have written it.
        created: the folders that this sweep has created.
    """
    file = folder / MULTIRUN
    if folder.absolute() == runs_folder.absolute() or not file.exists():
        return
    with contextlib.suppress(OSError):
        atomic_write_text(runs_folder / MULTIRUN, file.read_text())
        if before is None:
            _remove_if_unused(created or [folder])
            file.unlink(missing_ok=True)
        else:
            file.write_bytes(before)


def _remove_if_unused(created: list[Path]) -> None:
    """Removes the folders that the sweep has created, if they contain only Hydra's multirun.yaml."""
    with contextlib.suppress(OSError):
        for folder in created:
            (folder / MULTIRUN).unlink(missing_ok=True)
            folder.rmdir()


def default_overrides(overrides: list[str], params: Mapping[str, Any] = MappingProxyType({})) -> list[str]:
    """Overrides that a sweep adds unless they are given: `resume=auto`, and folder names that contain the swept keys.

    Args:
        params: `hydra.sweeper.params`, the keys that the config itself sweeps.
    """
    parsed = OverridesParser.create().parse_overrides(overrides)
    given = {override.key_or_group for override in parsed}
    swept = [*(o.key_or_group for o in parsed if o.is_sweep_override()), *params]
    swept = [key.lstrip("+").replace("/", ".") for key in swept]
    defaults = [] if "resume" in given else ["resume=auto"]
    if "hydra.sweep.subdir" not in given:
        defaults.append(
            f"hydra.sweep.subdir='${{job_name:${{hydra.overrides.task}},[{','.join(swept)}],${{hydra.sweep.dir}}}}'"
        )
    return defaults
