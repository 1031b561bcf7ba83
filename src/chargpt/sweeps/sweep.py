"""A sweep, from its command line to its table."""

import contextlib
import logging
from pathlib import Path

from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.types import RunMode

from chargpt.config.overrides import one_line
from chargpt.errors import DONE, FAILED, INTERRUPTED, MISTAKE, Interrupted, Mistake
from chargpt.sweeps.job import Job

log = logging.getLogger(__name__)


def sweep(config_name: str, overrides: list[str], script: Path) -> int:
    """Runs every job that is not done already, whatever became of the others, and compares them.

    Args:
        overrides: the command line, checked.
        script: `train.py`.

    Returns:
        The exit code: `FAILED` if any job failed.

    Raises:
        Mistake: what Hydra or a launcher refuses.
        Interrupted: a signal; the same command goes on.
    """
    hydra = GlobalHydra.instance().hydra
    overrides = [*overrides, *_defaults(overrides)]
    try:
        HydraConfig.instance().set_config(  # the sweep's own directory is named by ${hydra:...} too
            hydra.config_loader.load_configuration(config_name, overrides, RunMode.MULTIRUN)
        )
        folder = Path(HydraConfig.get().sweep.dir)
        made = [path for path in (folder, *folder.parents) if not path.exists()]
        batches = hydra.multirun(config_name, Job(script, []), overrides)
    except HydraException as error:
        raise Mistake(one_line(error)) from error
    except (KeyboardInterrupt, SystemExit) as left:
        if isinstance(left, SystemExit) and left.code != INTERRUPTED:
            raise
        raise Interrupted("the sweep is interrupted. The same command goes on where it stopped") from None
    results = [job.return_value for batch in batches for job in batch]
    codes = [result["code"] for result in results]
    if set(codes) == {MISTAKE}:
        _leave_nothing(made)
        return MISTAKE
    from chargpt.sweeps.compare import compare

    # The home of a job that was refused holds nothing, or another run.
    compare([Path(result["home"]) for result in results if result["code"] != MISTAKE], folder)
    return FAILED if any(codes) else DONE


def _leave_nothing(made: list[Path]) -> None:
    """Removes what the sweep has made, if that is no more than Hydra's record of it."""
    with contextlib.suppress(OSError):
        for folder in made:
            (folder / "multirun.yaml").unlink(missing_ok=True)
            folder.rmdir()


def _defaults(overrides: list[str]) -> list[str]:
    """What a sweep has otherwise than a run, unless it is told: jobs go on, and are named by what varies."""
    parsed = OverridesParser.create().parse_overrides(overrides)
    given = {override.key_or_group for override in parsed}
    swept = [o.key_or_group.replace("/", ".") for o in parsed if o.is_sweep_override()]
    words = [] if "resume" in given else ["resume=auto"]
    if "hydra.sweep.subdir" not in given:
        words.append(f"hydra.sweep.subdir='${{job_name:${{hydra.overrides.task}},[{','.join(swept)}]}}'")
    return words
