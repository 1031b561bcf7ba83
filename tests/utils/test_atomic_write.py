"""Tests of atomic writes: on a full disk, and with a concurrent reader."""

import errno
import os
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chargpt.utils.atomic_write import atomic_write_text


@given(st.text(st.characters(codec="utf-8")))
def test_written_text_is_read_back_unchanged(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "written.txt"
    atomic_write_text(path, content)
    assert path.read_bytes() == content.encode()


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_on_a_full_disk_the_old_content_remains_without_temporary_files(tmp_path: Path, monkeypatch, step):
    path = tmp_path / "metrics.json"
    atomic_write_text(path, "old")

    def disk_full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(*{"fsync": (os, "fsync"), "replace": (Path, "replace")}[step], disk_full)
    with pytest.raises(OSError, match="No space left"):
        atomic_write_text(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.json"]


def test_a_concurrent_reader_sees_the_old_or_the_new_content(tmp_path: Path):
    path, done = tmp_path / "status.json", threading.Event()
    contents = {letter * 100_000 for letter in "ab"}
    atomic_write_text(path, min(contents))
    seen = []

    def read():
        while not done.is_set():
            seen.append(path.read_text())

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(20):
        for content in contents:
            atomic_write_text(path, content)
    done.set()
    reader.join()
    assert seen
    assert set(seen) <= contents


def test_written_files_are_readable_by_other_users(tmp_path: Path):
    atomic_write_text(tmp_path / "sample.txt", "O what a night")
    assert (tmp_path / "sample.txt").stat().st_mode & 0o777 == 0o644
