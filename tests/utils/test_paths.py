"""Paths as people type them: no name of any kind raises anything but a mistake in a line."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chargpt.errors import UserError
from chargpt.utils.paths import printable, resolve_path


def test_a_tilde_is_the_home_folder_and_of_nobody_a_name_like_any_other(monkeypatch, tmp_path: Path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve_path("run", "~/a") == tmp_path / "a"
    assert resolve_path("run", "~nobody_at_all/a") == Path("~nobody_at_all/a")


@pytest.mark.parametrize("text", ["x" * 300, "a\0b"])
def test_what_can_be_no_path_is_told_with_its_setting(text):
    with pytest.raises(UserError, match=r"^run=") as told:
        resolve_path("run", text)
    assert len(str(told.value)) < 150


@given(st.text())
def test_any_text_is_a_path_or_a_mistake_and_can_be_shown(text):
    try:
        path = resolve_path("run", text)
    except UserError:
        return
    path.is_file()
    path.is_dir()
    printable(path).encode()


def test_bytes_that_are_no_text_are_shown_as_such():
    assert printable(Path("b\udcff")) == "b\ufffd"
