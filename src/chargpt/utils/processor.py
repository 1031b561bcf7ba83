"""The name of the processor."""

import contextlib
import platform
from pathlib import Path


def processor_name() -> str:
    """The model of the processor, as the operating system names it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
