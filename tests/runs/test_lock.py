"""The lock of a run directory: one holder, for as long as he or who inherits it lives."""

import subprocess
import sys
import time

import pytest

from chargpt.errors import UserError
from chargpt.runs import lock


@pytest.fixture(autouse=True)
def released():
    yield
    lock.release_all()


HOLD = "import sys, time; from pathlib import Path; from chargpt.runs import lock; lock.acquire(Path(sys.argv[1])); "


def other(folder, then: str) -> subprocess.Popen:
    """Another process that holds the lock of `folder`."""
    words = [sys.executable, "-c", f"{HOLD}print('held', flush=True); {then}", str(folder)]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    return process


def test_a_second_process_is_refused_and_told_so(tmp_path):
    process = other(tmp_path, "time.sleep(60)")
    try:
        assert lock.is_held(tmp_path)
        with pytest.raises(UserError, match="is being trained by another process"):
            lock.acquire(tmp_path, patience=0.3)
    finally:
        process.kill()
        process.wait()
    assert not lock.is_held(tmp_path), "the dead hold nothing"
    lock.acquire(tmp_path, patience=0)


def test_whoever_waits_gets_it_when_the_other_ends(tmp_path):
    process = other(tmp_path, "time.sleep(1)")
    start = time.monotonic()
    lock.acquire(tmp_path, patience=float("inf"))
    assert process.wait() == 0
    assert time.monotonic() - start < 30
    assert lock.is_held(tmp_path)


def test_it_is_held_as_long_as_one_lives_who_was_handed_it(tmp_path):
    hand_on = (
        "import subprocess; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(2)'], "
        "pass_fds=[lock.file_descriptor(Path(sys.argv[1]))])"
    )
    process = other(tmp_path, hand_on)
    assert process.wait() == 0
    assert lock.is_held(tmp_path), "its child lives"
    lock.acquire(tmp_path, patience=30)


def test_holding_twice_is_holding_once_and_giving_up_leaves_it_to_others(tmp_path):
    lock.acquire(tmp_path)
    lock.acquire(tmp_path)
    lock.release(tmp_path)
    assert lock.is_held(tmp_path) is False
    lock.release(tmp_path)


def test_where_there_are_no_locks_one_can_train_all_the_same_and_is_told(tmp_path, monkeypatch, caplog):
    def refused(*_, **__):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(lock, "lock_descriptor", refused)
    lock.acquire(tmp_path)
    assert lock.is_held_here(tmp_path)
    assert lock.is_held(tmp_path) is None
    assert "cannot be locked" in caplog.text


def test_nothing_is_left_where_nothing_came_of_it(tmp_path):
    assert lock.is_held(tmp_path) is None
    lock.acquire(tmp_path)
    lock.release_and_remove_all()
    assert not list(tmp_path.iterdir())
    lock.acquire(tmp_path)
    lock.release_all()
    lock.acquire(tmp_path)
    lock.release_and_remove_all()
    assert [file.name for file in tmp_path.iterdir()] == [lock.NAME], "it was there before"
