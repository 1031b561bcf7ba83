"""Which of several processes this one is, and how many there are to be."""

import signal

import pytest
from omegaconf import OmegaConf

from chargpt.distributed.env import forwarded_signals, num_processes


@pytest.mark.parametrize(
    ("devices", "count"),
    [(2, 2), ("3", 3), ([0, 2], 2), ("0,1", 2), ("1,", 1), ("auto", None), (-1, None), ("two", 1), ("²", 1)],
)
def test_how_many_processes_devices_mean(devices, count):
    assert num_processes(devices) == count
    assert num_processes(OmegaConf.create({"devices": devices}).devices) == count


@pytest.mark.parametrize("ignored", [False, True])
def test_a_hang_up_is_passed_on_unless_nohup_had_it_ignored(ignored):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored else signal.SIG_DFL)
    try:
        assert (signal.SIGHUP in forwarded_signals()) is not ignored
        assert {signal.SIGINT, signal.SIGTERM} <= set(forwarded_signals())
    finally:
        signal.signal(signal.SIGHUP, before)
