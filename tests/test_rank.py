"""Which of several processes this one is, and how many there are to be."""

import pytest
from omegaconf import OmegaConf

from chargpt.rank import processes


@pytest.mark.parametrize(
    ("devices", "count"),
    [(2, 2), ("3", 3), ([0, 2], 2), ("0,1", 2), ("1,", 1), ("auto", None), (-1, None), ("two", 1)],
)
def test_how_many_processes_devices_mean(devices, count):
    assert processes(devices) == count
    assert processes(OmegaConf.create({"devices": devices}).devices) == count
