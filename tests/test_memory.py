"""What memory there is; and the heap, which keeps what is freed: counted in page faults of a real process."""

import math
import subprocess
import sys

import pytest

from chargpt.memory import available, keep_heap

COUNT = """
import resource, sys, torch
from chargpt.memory import keep_heap
if sys.argv[1] == "keep" and not keep_heap():
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
    if not keep_heap():
        pytest.skip("not glibc")
    assert faults("keep") < faults("leave") / 10


@pytest.mark.parametrize(
    ("files", "found"),
    [
        ({}, math.inf),
        ({"proc/meminfo": "MemTotal: 9 kB\nMemAvailable:   100 kB\nSwapFree: 20 kB\n"}, 120 * 1024),
        ({"proc/meminfo": "MemTotal: 9 kB\n"}, math.inf),
        ({"sys/fs/cgroup/memory.max": "5000\n", "sys/fs/cgroup/memory.current": "2000\n"}, 3000),
        ({"sys/fs/cgroup/memory.max": "max\n", "sys/fs/cgroup/memory.current": "2000\n"}, math.inf),
    ],
)
def test_what_can_be_had_is_what_machine_and_container_still_have(tmp_path, files, found):
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    assert available(tmp_path) == found
