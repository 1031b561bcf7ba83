"""This machine's memory: how much there is to be had, and a heap that keeps what a training step gives back."""

import contextlib
import ctypes
import math
from pathlib import Path

import psutil

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of mallopt(3)
MAX_THRESHOLD = 2**31 - 1


def disable_malloc_trim() -> bool:
    """Has glibc keep freed memory, rather than return it to the kernel and get it again, page by page, each step.

    The peak stays what it was: every step wants the same memory.

    Returns:
        Whether it did anything: on Linux with glibc.
    """
    with contextlib.suppress(AttributeError, OSError):
        mallopt = ctypes.CDLL(None).mallopt
        kept = mallopt(M_TRIM_THRESHOLD, MAX_THRESHOLD)
        # Older versions take no more than 32 MiB here.
        return bool(kept and (mallopt(M_MMAP_THRESHOLD, MAX_THRESHOLD) or mallopt(M_MMAP_THRESHOLD, 32 << 20)))
    return False


def available_memory(group: Path = Path("/sys/fs/cgroup")) -> float:
    """Bytes that can still be had without anything being killed for them; infinite where the system does not say.

    Args:
        group: folder of the container's control group, whose limit psutil does not look at.
    """
    found = math.inf
    with contextlib.suppress(OSError):
        found = psutil.virtual_memory().available + psutil.swap_memory().free
    with contextlib.suppress(OSError, ValueError):  # no container; or `max`, where it has no limit
        found = min(found, int((group / "memory.max").read_text()) - int((group / "memory.current").read_text()))
    return found
