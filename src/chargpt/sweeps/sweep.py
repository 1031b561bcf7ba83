"""A sweep, from its command line to its table."""

import contextlib
import logging
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
from chargpt.sweeps.job import Job

log = logging.getLogger(__name__)


def sweep(config_name: str, overrides: list[str], script: Path, flags: list[str]) -> int:
    """Runs every job that is not done already, whatever became of the others, and compares them.

    Args:
        overrides: the command line, checked.
        script: `train.py`.
        flags: Hydra's flags that each job needs as well.

    Returns:
        The exit code: `ExitCode.FAILED` if any job failed.

    Raises:
        UserError: what Hydra or a launcher refuses.
        Interrupted: a signal; the same command goes on.
    """
    try:
        loader = GlobalHydra.instance().config_loader()
        config = loader.load_configuration(config_name, overrides, RunMode.MULTIRUN)
        HydraConfig.instance().set_config(config)  # the sweep's own directory is named by ${hydra:...} too
        overrides = [*overrides, *default_overrides(overrides, HydraConfig.get().sweeper.get("params") or {})]
        folder = Path(HydraConfig.get().sweep.dir)
        made = [path for path in (folder, *folder.parents) if not path.exists()]
        batches = GlobalHydra.instance().hydra.multirun(config_name, Job(script, flags), overrides)
    except HydraException as error:
        raise UserError(short_error(error)) from error
    except (KeyboardInterrupt, SystemExit) as left:
        if isinstance(left, SystemExit) and left.code != ExitCode.INTERRUPTED:
            raise
        raise Interrupted("the sweep is interrupted. The same command goes on where it stopped") from None
    results = [job.return_value for batch in batches for job in batch]
    codes = [result["code"] for result in results]
    if set(codes) == {ExitCode.USER_ERROR}:
        _remove_if_unused(made)
        return ExitCode.USER_ERROR
    from chargpt.runs.discover import common_folder
    from chargpt.sweeps.compare import compare

    # The home of a job that was refused holds nothing, or another run.
    homes = [Path(result["home"]) for result in results if result["code"] != ExitCode.USER_ERROR]
    compare(homes, common_folder(homes))
    refused = [result for result in results if result["code"] == ExitCode.USER_ERROR]
    for result in refused:
        sys.stderr.write(f"refused: {Path(result['home']).name}: {result['reason']}\n")
    if any(codes):
        sys.stderr.write(f"train.py: {sum(map(bool, codes))} of {len(codes)} jobs did not end well\n")
    return ExitCode.FAILED if any(codes) else ExitCode.DONE


def _remove_if_unused(made: list[Path]) -> None:
    """Removes what the sweep has made, if that is no more than Hydra's record of it."""
    with contextlib.suppress(OSError):
        for folder in made:
            (folder / "multirun.yaml").unlink(missing_ok=True)
            folder.rmdir()


def default_overrides(overrides: list[str], params: Mapping[str, Any] = MappingProxyType({})) -> list[str]:
    """What a sweep has otherwise than a run, unless it is told: jobs go on, and are named by what varies.

    Args:
        params: `hydra.sweeper.params`, what the config itself sweeps over.
    """
    parsed = OverridesParser.create().parse_overrides(overrides)
    given = {override.key_or_group for override in parsed}
    swept = [*(o.key_or_group for o in parsed if o.is_sweep_override()), *params]
    swept = [key.lstrip("+").replace("/", ".") for key in swept]
    words = [] if "resume" in given else ["resume=auto"]
    if "hydra.sweep.subdir" not in given:
        words.append(
            f"hydra.sweep.subdir='${{job_name:${{hydra.overrides.task}},[{','.join(swept)}],${{hydra.sweep.dir}}}}'"
        )
    return words
