"""What memory there is; and the heap, which keeps what is freed: counted in page faults of a real process."""

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
    raise SystemExit("not here")
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def use():
    return [torch.ones(12_000_000) for _ in range(2)]  # 48 MB each: more than glibc ever keeps by itself
for _ in range(5):
    use()
before = faults()
for _ in range(5):
    use()
print(faults() - before)
"""


def faults(word: str) -> int:
    done = subprocess.run([sys.executable, "-c", COUNT, word], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.slow
def test_memory_that_is_used_again_is_not_fetched_again():
    if not disable_malloc_trim():
        pytest.skip("not glibc")
    assert faults("keep") < faults("leave") / 10


def refuse() -> None:
    raise PermissionError("/proc/meminfo")


@pytest.mark.parametrize(
    ("machine", "limit", "used", "found"),
    [
        (120, None, None, 120),
        (120, "max\n", "20\n", 120),
        (120, "50\n", "20\n", 30),
        (120, "500\n", "20\n", 120),
        (None, "50\n", "20\n", 30),
        (None, None, None, math.inf),
    ],
)
def test_what_can_be_had_is_what_machine_and_container_still_have(monkeypatch, tmp_path, machine, limit, used, found):
    def memory():
        return SimpleNamespace(available=machine - 20) if machine else refuse()

    monkeypatch.setattr(psutil, "virtual_memory", memory)
    monkeypatch.setattr(psutil, "swap_memory", lambda: SimpleNamespace(free=20))
    if limit:
        (tmp_path / "memory.max").write_text(limit)
        (tmp_path / "memory.current").write_text(used)
    assert available_memory(tmp_path) == found


def test_this_machine_has_some_memory_but_not_more_than_it_has():
    whole = psutil.virtual_memory().total + psutil.swap_memory().total
    assert 2**20 < available_memory() <= whole
