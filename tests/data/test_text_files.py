"""Tests of the user's text files: which files of a folder are read, and which are refused."""

import bz2
import gzip
import io
import lzma
import os
import re
import shlex
import shutil
import subprocess
import tarfile
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chargpt.data.text_files import TextFiles, read_utf8
from chargpt.errors import UserError

PLAY = "First Citizen:\nBefore we proceed any further, hear me speak.\n"


@pytest.mark.parametrize("text", ["a", "a\r\nb\rc\n", "a \ufeff", "naïve 😀\u2028\x85", "\x1b[32mOK\a", PLAY])
def test_a_file_is_read_unchanged(tmp_path, text):
    path = tmp_path / "some.text"
    path.write_bytes(text.encode())
    corpus = TextFiles(path)
    assert corpus.read() == text
    assert corpus.name == "some.text"


def test_the_files_of_a_folder_are_joined_in_sorted_order(tmp_path):
    for name in ("b.txt", "a.md", "c/d.txt", "10.txt", "9.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"<{name}>")
    (tmp_path / "b.csv").write_text("not this")
    (tmp_path / "folder.txt").mkdir()
    assert TextFiles(str(tmp_path)).read() == "<10.txt><9.txt><a.md><b.txt><c/d.txt>"


def test_the_tilde_in_a_path_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine.txt").write_text("mine")
    assert TextFiles("~/mine.txt").read() == "mine"


def test_a_file_name_may_start_with_a_tilde(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("~draft.txt").write_text("mine")
    assert TextFiles("~draft.txt").read() == "mine"


def test_a_file_that_is_not_utf8_is_a_user_error_with_the_offset(tmp_path):
    path = tmp_path / "latin.txt"
    path.write_bytes("schön".encode("latin-1"))
    with pytest.raises(UserError, match=r"latin\.txt is not UTF-8: byte 0xf6 at offset 3\. .*iconv"):
        TextFiles(path).read()


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_utf16_is_detected_by_its_byte_order_mark(tmp_path, encoding):
    path = tmp_path / "windows.txt"
    path.write_bytes(("\ufeff" if encoding != "utf-16" else "").encode(encoding) + "schön".encode(encoding))
    with pytest.raises(UserError, match=r"but UTF-16\. .*iconv -f UTF-16 -t UTF-8"):
        TextFiles(path).read()


def test_the_message_names_the_invalid_file_of_a_folder(tmp_path):
    (tmp_path / "a.txt").write_text("good")
    (tmp_path / "b.txt").write_bytes(b"\xff")
    with pytest.raises(UserError, match=r"b\.txt is not UTF-8"):
        TextFiles(tmp_path).read()


def test_an_empty_file_is_a_user_error(tmp_path):
    (tmp_path / "empty.txt").touch()
    with pytest.raises(UserError, match=r"empty\.txt is empty"):
        TextFiles(tmp_path / "empty.txt").read()
    with pytest.raises(UserError, match="is empty"):
        TextFiles(tmp_path).read()


def test_an_empty_path_is_a_user_error():
    with pytest.raises(UserError, match=r"data\.path is empty"):
        TextFiles("")


def test_the_message_about_a_missing_file_names_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as error:
        TextFiles("nowhere.txt").read()
    assert "nowhere.txt does not exist" in str(error.value)
    assert str(tmp_path) in str(error.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("some.txt/below.txt", "cannot be read"),
        ("x" * 300, "File name too long"),
        ("a\0b", "is not a valid path"),
        ("\ud800", "is not a valid path"),
    ],
)
def test_an_invalid_path_is_a_user_error(tmp_path, name, message):
    (tmp_path / "some.txt").write_text("text")
    with pytest.raises(UserError, match=message):
        TextFiles(tmp_path / name).read()


def test_a_folder_that_is_deleted_while_it_is_read_is_a_user_error(tmp_path, monkeypatch):
    def deleted(path, **kwargs):
        raise FileNotFoundError(2, "No such file or directory", str(path / "below"))

    monkeypatch.setattr(os, "walk", deleted)
    with pytest.raises(UserError, match="cannot be read: No such file"):
        TextFiles(tmp_path).read()


def test_the_message_about_a_folder_without_text_files_names_the_suffixes(tmp_path):
    (tmp_path / "data.csv").write_text("1,2")
    with pytest.raises(UserError, match=r"\.txt or \.md"):
        TextFiles(tmp_path).read()


def make(folder: Path, **files: str | bytes) -> Path:
    """Writes files; `__` in a name is a slash and `_dot_` a dot."""
    for name, content in files.items():
        path = folder / name.replace("_dot_", ".").replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


# Which files are read


def test_suffixes_ignore_case(tmp_path):
    make(tmp_path, A_dot_TXT="a", b_dot_Md="b", c_dot_PY="c")
    assert TextFiles(tmp_path).read() == "ab"
    assert TextFiles(tmp_path, [".Py"]).read() == "c"


def test_hidden_files_and_those_of_operating_systems_are_left_out(tmp_path):
    make(tmp_path, book_dot_txt="text", _dot_hidden_dot_txt="no", _dot_ipynb_checkpoints__book_dot_txt="no")
    make(tmp_path, _dot_git__a__b_dot_md="no", pkg__b_dot_txt=", more")
    make(tmp_path / "__MACOSX", _dot__book_dot_txt="no")
    make(tmp_path, **{"~$book_dot_txt": "no"})
    corpus = TextFiles(tmp_path)
    assert corpus.read() == "text, more"
    assert corpus.describe() == "2 files (2 .txt), left out 5 hidden"


def test_a_folder_that_is_given_may_itself_be_hidden(tmp_path):
    make(tmp_path, _dot_texts__a_dot_txt="a")
    assert TextFiles(tmp_path / ".texts").read() == "a"


def test_the_description_counts_files_by_suffix(tmp_path):
    make(tmp_path, README_dot_md="# A tool", LICENSE="free", **{f"pkg__m{k}_dot_py": "pass" for k in range(20)})
    corpus = TextFiles(tmp_path)
    assert corpus.read() == "# A tool"
    assert corpus.describe() == (
        "1 file (1 .md), left out 20 .py, 1 without a suffix; to read them: data.suffixes=[.txt,.md,.py]"
    )
    corpus = TextFiles(tmp_path, [".txt", ".md", ".py"])
    assert corpus.read() == "# A tool" + 20 * "pass"
    assert corpus.describe() == "21 files (20 .py, 1 .md), left out 1 without a suffix"


def test_a_single_file_needs_no_description_and_may_have_any_suffix(tmp_path):
    corpus = TextFiles(make(tmp_path, _dot_bashrc="export A=1") / ".bashrc")
    assert (corpus.read(), corpus.describe()) == ("export A=1", "")


def test_a_list_is_read_in_its_order_and_each_file_once(tmp_path):
    make(tmp_path, a_dot_txt="a", b_dot_txt="b", c__d_dot_txt="d")
    corpus = TextFiles([tmp_path / "b.txt", tmp_path / "c", tmp_path])
    assert corpus.read() == "bda"
    assert (corpus.name, corpus.describe()) == ("b.txt and 2 more", "3 files (3 .txt)")


def test_a_pattern_selects_files_and_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(make(tmp_path, b1_dot_text="1", b2_dot_text="2", b3__x_dot_txt="3", c_dot_text="no"))
    assert TextFiles("b*").read() == "123"
    assert TextFiles("**/*.txt").read() == "3"
    with pytest.raises(UserError, match=r"data\.path=z\* matches no file"):
        TextFiles("z*").read()


def test_a_file_whose_name_is_a_pattern_is_read_itself(tmp_path, monkeypatch):
    monkeypatch.chdir(make(tmp_path, **{"[a]_dot_txt": "this", "a_dot_txt": "not this"}))
    assert TextFiles("[a].txt").read() == "this"


@pytest.mark.parametrize("suffixes", [[], ".txt", ["txt"], [""]])
def test_invalid_suffixes_are_a_user_error(suffixes):
    with pytest.raises(UserError, match=r"data\.suffixes=.*\[\.txt,\.py\]"):
        TextFiles("somewhere", suffixes)


# Files that are not UTF-8 text


def test_one_byte_order_mark_of_each_file_is_dropped(tmp_path):
    make(tmp_path, a_dot_txt="\ufeffa", b_dot_txt="\ufeff\ufeffb\ufeff", c_dot_txt="c")
    assert TextFiles(tmp_path).read() == "a\ufeffb\ufeffc"


def archive(kind: str) -> bytes:
    buffer = io.BytesIO()
    if kind == "tar":
        with tarfile.open(fileobj=buffer, mode="w") as tar:
            tar.addfile(tarfile.TarInfo("a.txt"))
        return buffer.getvalue()
    names = {"zip": "a.txt", "docx": "word/document.xml", "xlsx": "xl/workbook.xml", "epub": "mimetype"}
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr(names[kind], "application/epub+zip" if kind == "epub" else PLAY)
    return buffer.getvalue()


OTHER = {
    "gzip": (gzip.compress(PLAY.encode()), "compressed by gzip"),
    "bzip2": (bz2.compress(PLAY.encode()), "compressed by bzip2"),
    "xz": (lzma.compress(PLAY.encode()), "compressed by xz"),
    "zip": (archive("zip"), "a zip archive"),
    "tar": (archive("tar"), "a tar archive"),
    "docx": (archive("docx"), "a Word document"),
    "xlsx": (archive("xlsx"), "an Excel workbook"),
    "epub": (archive("epub"), "an e-book"),
    "pdf": (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n1 0 obj", "a PDF"),
    "rtf": (b"{\\rtf1\\ansi Hello}", "a rich text document"),
    "doc": (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(500), "an Office document"),
}


@pytest.mark.parametrize("kind", OTHER)
@pytest.mark.parametrize("name", ["it's.{kind}", "book.txt"])
def test_other_formats_are_recognized_by_their_first_bytes(kind, name, tmp_path):
    content, description = OTHER[kind]
    path = tmp_path / name.format(kind=kind)
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"is {description}.* not a text file\. Convert it: \w+ .+"):
        TextFiles(tmp_path, [path.suffix]).read()


@pytest.mark.parametrize("kind", ["gzip", "bzip2", "xz"])
def test_the_command_of_the_message_makes_a_text_file(kind, tmp_path):
    path = tmp_path / f"it's a book.txt.{kind}"
    path.write_bytes(OTHER[kind][0])
    with pytest.raises(UserError) as error:
        read_utf8(path)
    subprocess.run(str(error.value).partition("Convert it: ")[2], shell=True, check=True)
    assert read_utf8(tmp_path / "it's a book.txt") == PLAY


def test_the_command_does_not_overwrite_a_text_file(tmp_path):
    make(tmp_path, book_dot_txt="mine", book_dot_pdf=OTHER["pdf"][0])
    with pytest.raises(UserError) as error:
        read_utf8(tmp_path / "book.pdf")
    assert shlex.split(str(error.value))[-1] == str(tmp_path / "book.plain.txt")


WIDE = ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"]


@pytest.mark.parametrize("encoding", WIDE)
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_wide_encodings_are_named_and_the_command_converts_them(encoding, mark, tmp_path):
    path = tmp_path / "my notes.txt"
    path.write_bytes((mark + PLAY).encode(encoding))
    name = encoding.upper().replace("-LE", "LE").replace("-BE", "BE")
    with pytest.raises(UserError, match=f"is not UTF-8 but {name[:6]}") as error:
        read_utf8(path)
    subprocess.run(str(error.value).partition("Convert it: ")[2], shell=True, check=True)
    assert read_utf8(tmp_path / "my notes.utf8.txt").removeprefix("\ufeff") == PLAY


@given(text=st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1))
def test_no_utf8_text_without_nul_is_taken_for_another_encoding(text, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "any.txt"
    path.write_bytes(text.encode())
    assert read_utf8(path) == text.removeprefix("\ufeff")


@pytest.mark.parametrize("content", [b"a\0b", b"\0", bytes(range(128))])
def test_nul_characters_are_a_user_error(content, tmp_path):
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(UserError, match=r"a\.txt is not a text file: it contains a NUL character|UTF-16"):
        TextFiles(tmp_path).read()


@pytest.mark.skipif(os.geteuid() == 0, reason="root can read every folder")
def test_a_folder_below_that_cannot_be_read_is_a_user_error(tmp_path):
    make(tmp_path, a_dot_txt="a", below__b_dot_txt="b")
    (tmp_path / "below").chmod(0)
    with pytest.raises(UserError, match=r"cannot be read: Permission denied .*below"):
        TextFiles(tmp_path).read()


@pytest.mark.skipif(shutil.which("iconv") is None, reason="requires iconv")
@pytest.mark.parametrize("encoding", ["utf-16", "cp1252"])
def test_the_command_that_converts_a_file_of_a_folder_replaces_it(tmp_path, encoding):
    (tmp_path / "a.txt").write_text("plain\n")
    (tmp_path / "old one.txt").write_text("schön\n", encoding=encoding)
    with pytest.raises(UserError) as error:
        TextFiles(tmp_path).read()
    subprocess.run(re.search(r"iconv .*", str(error.value))[0], shell=True, check=True)
    assert TextFiles(tmp_path).read() == "plain\nschön\n"
