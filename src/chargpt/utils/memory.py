"""The memory of this machine: the amount available, and a heap that keeps freed memory between training steps."""

import contextlib
import ctypes
import math
from pathlib import Path

import psutil

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of mallopt(3)
MAX_THRESHOLD = 2**31 - 1


def disable_malloc_trim() -> bool:
    """Makes glibc keep freed memory for the next step, instead of returning it to the kernel (which costs page faults).

    The peak does not change, because every step needs the same memory.

    Returns:
        Whether the setting was accepted: only on Linux with glibc.
    """
    with contextlib.suppress(AttributeError, OSError):
        mallopt = ctypes.CDLL(None).mallopt
        trim_disabled = mallopt(M_TRIM_THRESHOLD, MAX_THRESHOLD)
        # Older versions of glibc accept at most 32 MiB here.
        return bool(trim_disabled and (mallopt(M_MMAP_THRESHOLD, MAX_THRESHOLD) or mallopt(M_MMAP_THRESHOLD, 32 << 20)))
    return False


def available_memory(group: Path = Path("/sys/fs/cgroup")) -> float:
    """The bytes that can be allocated before the system is out of memory; infinite if the system does not report them.

    Args:
        group: folder of the container's control group, whose limit psutil does not include.
    """
    available = math.inf
    with contextlib.suppress(OSError):
        available = psutil.virtual_memory().available + psutil.swap_memory().free
    with contextlib.suppress(OSError, ValueError):  # there is no container, or its limit is `max`
        limit, used = (int((group / name).read_text()) for name in ("memory.max", "memory.current"))
        available = min(available, limit - used)
    return available
