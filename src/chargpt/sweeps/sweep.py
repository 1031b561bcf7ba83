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
from hydra.errors import HydraException
from hydra.types import RunMode

from chargpt.config.overrides import short_error
from chargpt.errors import ExitCode, Interrupted, UserError
from chargpt.invocation import program_name
from chargpt.runs.discover import common_folder
from chargpt.sweeps.job import SAFE_PATH_ENV, Job

log = logging.getLogger(__name__)


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
    try:
        loader = GlobalHydra.instance().config_loader()
        config = loader.load_configuration(config_name, overrides, RunMode.MULTIRUN)
        HydraConfig.instance().set_config(config)  # hydra.sweep.dir contains ${hydra:...}
        overrides = [*overrides, *default_overrides(overrides, HydraConfig.get().sweeper.get("params") or {})]
        folder = Path(HydraConfig.get().sweep.dir)
        created = [path for path in (folder, *folder.parents) if not path.exists()]
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

    # The directory of a refused job is empty, or contains a different run.
    runs = [Path(result["directory"]) for result in results if result["code"] != ExitCode.USER_ERROR]
    rows = compare(runs, common_folder(runs))
    for result in results:
        if result["code"] == ExitCode.USER_ERROR:
            sys.stderr.write(f"refused: {Path(result['directory']).name}: {result['reason']}\n")
    if any(codes):
        sys.stderr.write(f"{program_name()}: {sum(map(bool, codes))} of {len(codes)} jobs did not succeed\n")
    return results, rows


def _remove_if_unused(created: list[Path]) -> None:
    """Removes the folders that the sweep has created, if they contain only Hydra's multirun.yaml."""
    with contextlib.suppress(OSError):
        for folder in created:
            (folder / "multirun.yaml").unlink(missing_ok=True)
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
