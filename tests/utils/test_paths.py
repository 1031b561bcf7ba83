"""Tests of paths given by the user: any string is a path or a user error of one line."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chargpt.errors import UserError
from chargpt.utils.paths import printable, resolve_path


def test_the_tilde_is_expanded_unless_the_user_does_not_exist(monkeypatch, tmp_path: Path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve_path("run", "~/a") == tmp_path / "a"
    assert resolve_path("run", "~nobody_at_all/a") == Path("~nobody_at_all/a")


@pytest.mark.parametrize("text", ["x" * 300, "a\0b"])
def test_the_message_about_an_invalid_path_names_the_setting(text):
    with pytest.raises(UserError, match=r"^run=") as error:
        resolve_path("run", text)
    assert len(str(error.value)) < 150


@given(st.text())
def test_any_text_is_a_printable_path_or_a_user_error(text):
    try:
        path = resolve_path("run", text)
    except UserError:
        return
    path.is_file()
    path.is_dir()
    printable(path).encode()


def test_bytes_that_are_not_utf8_are_printed_as_replacement_characters():
    assert printable(Path("b\udcff")) == "b\ufffd"
