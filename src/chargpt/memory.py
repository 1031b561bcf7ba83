"""The heap: memory that a training step gives back is kept for the next one."""

import contextlib
import ctypes

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of mallopt(3)
NEVER = 2**31 - 1


def keep_heap() -> bool:
    """Has glibc keep freed memory, rather than return it to the kernel and get it again, page by page, each step.

    The peak stays what it was: every step wants the same memory.

    Returns:
        Whether it did anything: on Linux with glibc.
    """
    with contextlib.suppress(AttributeError, OSError):
        mallopt = ctypes.CDLL(None).mallopt
        kept = mallopt(M_TRIM_THRESHOLD, NEVER)
        # Older versions take no more than 32 MiB here.
        return bool(kept and (mallopt(M_MMAP_THRESHOLD, NEVER) or mallopt(M_MMAP_THRESHOLD, 32 << 20)))
    return False
