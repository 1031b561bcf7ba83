"""Removes the checkpoints that a finished run does not keep."""

import logging
import os

from chargpt.checkpoint import torch_file
from chargpt.distributed import env
from chargpt.errors import TrainingError, UserError
from chargpt.runs.directory import RunDirectory
from chargpt.runs.retention import ALL, WEIGHTS_ONLY

log = logging.getLogger(__name__)

# What `chargpt.load` reads, and what identifies the file as a checkpoint.
WEIGHTS_KEYS = ("pytorch-lightning_version", "epoch", "global_step", "state_dict", torch_file.KEY)


def remove_checkpoints(directory: RunDirectory, keep: str) -> None:
    """Removes what `keep` does not name, and logs it. Call only when metrics.json exists, while holding the lock.

    If the process is killed at any point, the run is finished, `best.ckpt` is complete, and `last.ckpt` is removed
    last: there is never a run that has lost its last step but is still listed as resumable.

    Args:
        keep: a resolved value of `checkpoint.keep`.
    """
    if keep == ALL or not directory.best.exists():
        return
    before = _bytes(directory)
    try:
        if keep == WEIGHTS_ONLY:
            checkpoint = torch_file.read(directory.best)
            torch_file.save({key: checkpoint[key] for key in WEIGHTS_KEYS if key in checkpoint}, directory.best)
        for path in (directory.previous, directory.last):
            path.unlink(missing_ok=True)
    except (OSError, TrainingError, UserError) as error:
        log.warning("checkpoint=%s: not all checkpoints were removed: %s", keep, error)
        return
    kept = "the weights of best.ckpt" if keep == WEIGHTS_ONLY else "best.ckpt"
    sizes = before / 1e6, _bytes(directory) / 1e6
    if env.SWEEP_ENV not in os.environ:  # there it is the default
        log.info("checkpoint=%s: kept %s, %.1f of %.1f MB", keep, kept, sizes[1], sizes[0])


def _bytes(directory: RunDirectory) -> int:
    """The size of the checkpoints; hard links to the same file count once."""
    status = [path.stat() for path in (directory.last, directory.previous, directory.best) if path.exists()]
    return sum({entry.st_ino: entry.st_size for entry in status}.values())
