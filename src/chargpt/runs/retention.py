"""Which checkpoints a finished run keeps (`checkpoint.keep`), and the error if those for resuming have been removed.

This module does not import torch.
"""

import os

from chargpt.distributed.env import SWEEP_ENV
from chargpt.errors import UserError
from chargpt.invocation import command_line
from chargpt.runs.directory import RunDirectory

ALL, BEST_ONLY, WEIGHTS_ONLY, AUTO = "all", "best_only", "weights_only", "auto"
KEEP = (AUTO, ALL, BEST_ONLY, WEIGHTS_ONLY)


def resolve(keep: str) -> str:
    """Replaces `auto`: a job of a sweep keeps only the weights, any other run keeps all checkpoints.

    Raises:
        UserError: `keep` is not one of `KEEP`.
    """
    if keep not in KEEP:
        raise UserError(f"checkpoint.keep={keep}: it must be one of {', '.join(KEEP)}")
    if keep == AUTO:
        return WEIGHTS_ONLY if os.environ.get(SWEEP_ENV) else ALL
    return keep


def check_resumable(directory: RunDirectory) -> None:
    """Raises `UserError` if the run is finished and has no checkpoint of its last step any more."""
    if not directory.metrics.exists() or directory.last.exists() or directory.previous.exists():
        return
    path, config = directory.path, directory.read_config()
    recorded = (config.get("checkpoint") or {}).get("keep", ALL) if config is not None else ALL
    longer = f"trainer.max_steps={2 * int(directory.read_metrics().get('steps', 1))}"
    if recorded in (ALL, BEST_ONLY) and directory.best.exists():
        advice = f"Continue from its best step: {command_line('train', f'resume={directory.best}', longer)}"
    else:
        again = command_line("train", f"rerun={path}", longer, f"checkpoint={ALL}")
        advice = f"Repeat it with more steps: {again}"
    raise UserError(
        f"{path} is finished, and last.ckpt, from which it could be trained longer, was removed "
        f"(checkpoint.keep={recorded}). {advice}"
    )
