"""The number of processes of a run, and the signals that are forwarded to them."""

import signal

import pytest
from omegaconf import OmegaConf

from chargpt.distributed.env import forwarded_signals, num_processes


@pytest.mark.parametrize(
    ("devices", "count"),
    [(2, 2), ("3", 3), ([0, 2], 2), ("0,1", 2), ("1,", 1), ("auto", None), (-1, None), ("two", 1)],
)
def test_num_processes_is_the_number_of_devices(devices, count):
    assert num_processes(devices) == count
    assert num_processes(OmegaConf.create({"devices": devices}).devices) == count


@pytest.mark.parametrize("ignored", [False, True])
def test_sighup_is_forwarded_unless_it_is_ignored(ignored):
    handler = signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored else signal.SIG_DFL)
    try:
        assert (signal.SIGHUP in forwarded_signals()) is not ignored
        assert {signal.SIGINT, signal.SIGTERM} <= set(forwarded_signals())
    finally:
        signal.signal(signal.SIGHUP, handler)
