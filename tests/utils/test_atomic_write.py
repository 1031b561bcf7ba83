"""Files are whole or absent: on a full disk, and for a reader at every moment."""

import errno
import os
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chargpt.utils.atomic_write import atomic_write_text


@given(st.text(st.characters(codec="utf-8")))
def test_what_is_written_whole_is_read_back(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "written.txt"
    atomic_write_text(path, content)
    assert path.read_bytes() == content.encode()


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_content_and_nothing_else(tmp_path: Path, monkeypatch, step):
    path = tmp_path / "metrics.json"
    atomic_write_text(path, "old")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(*{"fsync": (os, "fsync"), "replace": (Path, "replace")}[step], full)
    with pytest.raises(OSError, match="No space left"):
        atomic_write_text(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.json"]


def test_a_reader_sees_the_old_or_the_new_content_at_every_moment(tmp_path: Path):
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


def test_what_is_written_may_be_read_by_others(tmp_path: Path):
    atomic_write_text(tmp_path / "sample.txt", "O what a night")
    assert (tmp_path / "sample.txt").stat().st_mode & 0o777 == 0o644
