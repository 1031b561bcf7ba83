"""Requeues a Slurm job after the signal that Slurm sends before the time limit."""

import logging
import os
import signal
import subprocess

log = logging.getLogger(__name__)

PREEMPTION_SIGNAL = signal.SIGUSR1  # `#SBATCH --signal=USR1@60`


def requeue() -> None:
    """Requeues the current Slurm job, if there is one. Logs a failure and raises nothing."""
    job = os.environ.get("SLURM_JOB_ID")
    if job is None:
        return
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    try:
        subprocess.run(["scontrol", "requeue", job], check=True, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.SubprocessError) as error:
        reason = getattr(error, "stderr", None) or error
        log.warning("Slurm job %s cannot be requeued: %s", job, str(reason).strip())
    else:
        log.info("Slurm job %s is requeued", job)
