"""The lock of a run directory: held until the process and all that inherit its descriptor have exited."""

import math
import subprocess
import sys
import time

import pytest

from chargpt.errors import UserError
from chargpt.runs import lock


@pytest.fixture(autouse=True)
def release_locks():
    yield
    lock.release_all()


HOLD = "import sys, time; from pathlib import Path; from chargpt.runs import lock; lock.acquire(Path(sys.argv[1])); "


def start_holder(folder, then: str) -> subprocess.Popen:
    """Starts a process that acquires the lock of `folder` and then runs `then`."""
    command = [sys.executable, "-c", f"{HOLD}print('held', flush=True); {then}", str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    return process


def test_a_second_process_is_refused_with_a_message(tmp_path):
    process = start_holder(tmp_path, "time.sleep(60)")
    try:
        assert lock.is_held(tmp_path)
        with pytest.raises(UserError, match="another process is training in"):
            lock.acquire(tmp_path, timeout=0.3)
    finally:
        process.kill()
        process.wait()
    assert not lock.is_held(tmp_path), "released when the process exits"
    lock.acquire(tmp_path, timeout=0)


def test_a_waiting_process_acquires_the_lock_when_the_holder_exits(tmp_path):
    process = start_holder(tmp_path, "time.sleep(1)")
    start = time.monotonic()
    lock.acquire(tmp_path, timeout=math.inf)
    assert process.wait() == 0
    assert time.monotonic() - start < 30
    assert lock.is_held(tmp_path)


def test_the_lock_is_held_while_a_process_that_inherited_the_descriptor_runs(tmp_path):
    start_child = (
        "import subprocess; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(2)'], "
        "pass_fds=[lock.file_descriptor(Path(sys.argv[1]))])"
    )
    process = start_holder(tmp_path, start_child)
    assert process.wait() == 0
    assert lock.is_held(tmp_path), "by the child"
    lock.acquire(tmp_path, timeout=30)


def test_acquire_and_release_are_idempotent(tmp_path):
    lock.acquire(tmp_path)
    lock.acquire(tmp_path)
    lock.release(tmp_path)
    assert lock.is_held(tmp_path) is False
    lock.release(tmp_path)


def test_without_support_for_locks_acquire_only_warns(tmp_path, monkeypatch, caplog):
    def unsupported(*_, **__):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(lock, "lock_descriptor", unsupported)
    lock.acquire(tmp_path)
    assert lock.is_held_here(tmp_path)
    assert lock.is_held(tmp_path) is None
    assert "cannot be locked" in caplog.text


def test_only_lock_files_created_by_this_process_are_removed(tmp_path):
    assert lock.is_held(tmp_path) is None
    lock.acquire(tmp_path)
    lock.release_and_remove_all()
    assert not list(tmp_path.iterdir())
    lock.acquire(tmp_path)
    lock.release_all()
    lock.acquire(tmp_path)
    lock.release_and_remove_all()
    assert [file.name for file in tmp_path.iterdir()] == [lock.NAME], "it existed before"
