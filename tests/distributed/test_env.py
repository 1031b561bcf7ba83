"""The number of processes of a run, and the signals that are forwarded to them."""

import ctypes
import os
import signal
import sys
import threading

import pytest
from omegaconf import OmegaConf

from chargpt.distributed import env
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


def test_on_macos_a_process_exits_after_its_parent_without_prctl(monkeypatch):
    exited = threading.Event()
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(ctypes, "CDLL", lambda name: pytest.fail("prctl is a system call of Linux"))
    monkeypatch.setattr(os, "_exit", lambda code: exited.set())
    monkeypatch.setenv(env.PARENT_PID_ENV, str(os.getppid()))
    env.exit_with_parent(grace=0.0)
    assert not exited.wait(0.1)
    monkeypatch.setenv(env.PARENT_PID_ENV, "1" if os.getppid() != 1 else "2")  # as if the parent had exited
    assert exited.wait(10)
