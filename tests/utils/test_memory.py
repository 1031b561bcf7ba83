"""Tests of the available memory, and of the heap that keeps freed memory, by the page faults of a real process."""

import ctypes
import math
import subprocess
import sys
from types import SimpleNamespace

import psutil
import pytest

from chargpt.utils.memory import available_memory, disable_malloc_trim

COUNT = """
import resource, sys, torch
from chargpt.utils.memory import disable_malloc_trim
if sys.argv[1] == "keep" and not disable_malloc_trim():
    raise SystemExit("not glibc")
def page_faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def allocate():
    return [torch.ones(12_000_000) for _ in range(2)]  # 48 MB each: more than glibc keeps by default
for _ in range(5):
    allocate()
start = page_faults()
for _ in range(5):
    allocate()
print(page_faults() - start)
"""


def page_faults(mode: str) -> int:
    result = subprocess.run([sys.executable, "-c", COUNT, mode], capture_output=True, text=True, check=True)
    return int(result.stdout)


@pytest.mark.slow
def test_reused_memory_causes_few_page_faults():
    if not disable_malloc_trim():
        pytest.skip("not glibc")
    assert page_faults("keep") < page_faults("default") / 10


def test_without_mallopt_the_heap_is_unchanged(monkeypatch):
    """As on macOS, and on Linux without glibc."""
    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace())
    assert disable_malloc_trim() is False


def deny() -> None:
    raise PermissionError("/proc/meminfo")


@pytest.mark.parametrize(
    ("machine", "limit", "used", "expected"),
    [
        (120, None, None, 120),
        (120, "max\n", "20\n", 120),
        (120, "50\n", "20\n", 30),
        (120, "500\n", "20\n", 120),
        (None, "50\n", "20\n", 30),
        (None, None, None, math.inf),
    ],
)
def test_available_memory_is_the_minimum_of_machine_and_container(
    monkeypatch, tmp_path, machine, limit, used, expected
):
    def memory():
        return SimpleNamespace(available=machine - 20) if machine else deny()

    monkeypatch.setattr(psutil, "virtual_memory", memory)
    monkeypatch.setattr(psutil, "swap_memory", lambda: SimpleNamespace(free=20))
    if limit:
        (tmp_path / "memory.max").write_text(limit)
        (tmp_path / "memory.current").write_text(used)
    assert available_memory(tmp_path) == expected


def test_available_memory_is_at_most_the_total_of_the_machine():
    total = psutil.virtual_memory().total + psutil.swap_memory().total
    assert 2**20 < available_memory() <= total
