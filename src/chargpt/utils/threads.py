"""Chooses the number of threads of torch: that of the processors that other programs leave idle.

Threads that wait for one that is not running make a step of a small model several times slower than a single thread
(experiments/speed).
"""

import contextlib
import math
import os
import time
from pathlib import Path

import psutil

MIN_SECONDS, MAX_SECONDS = 0.3, 10.0  # of a measurement


class IdleProcessors:
    """Measures how many processors other programs leave idle, from its construction on, or for `MIN_SECONDS`."""

    def __init__(self) -> None:
        self._start = self._read()

    def measure(self) -> float:
        """The mean number of processors that this process has used or could have used."""
        if time.monotonic() > self._start[0] + MAX_SECONDS:
            self._start = self._read()
        time.sleep(max(0.0, self._start[0] + MIN_SECONDS - time.monotonic()))
        now = self._read()
        seconds, busy, own = (after - before for after, before in zip(now, self._start, strict=True))
        return min(available_processors(), (os.cpu_count() or 1) - max(0.0, busy - own) / seconds)

    @staticmethod
    def _read() -> tuple[float, float, float]:
        """The time, the processor time of all programs, and that of this process and its children, in seconds."""
        machine, own = psutil.cpu_times(), os.times()
        # The time of guests is part of `user`; iowait is idle time.
        busy = sum(getattr(machine, name, 0.0) for name in ("user", "nice", "system", "irq", "softirq", "steal"))
        return time.monotonic(), busy, sum(own[:4])


def available_processors(group: Path = Path("/sys/fs/cgroup")) -> float:
    """The number of processors that this process may use: its affinity, and the quota of its container.

    Args:
        group: folder of the container's control group.
    """
    count = float(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    with contextlib.suppress(OSError, ValueError):  # there is no container, or its quota is `max`
        quota, period = (group / "cpu.max").read_text().split()
        count = min(count, int(quota) / int(period))
    return count


def physical_processors() -> int:
    """The number of cores, each of which may be several processors."""
    return psutil.cpu_count(logical=False) or os.cpu_count() or 1


def choose(idle: float, default: int, processes: int = 1) -> int:
    """The number of threads for each of several equal processes on a machine with this many idle processors.

    Args:
        default: torch's own number, which is that of the physical cores.
    """
    return max(1, min(default, math.floor((idle + 0.4) / processes)))


measurement = IdleProcessors()  # train.py imports this module before torch, which takes seconds
