"""Texts that are no texts: files, folders and devices for the experiments beside it."""

import os
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

SPEECH = "The king shall speak of love and war.\n" * 300


@dataclass(frozen=True)
class Text:
    """Something that is named where a text is wanted.

    Attributes:
        name: in the case's folder, or an absolute path, or the text itself.
        write: makes it at its path; None where it is there already, or where `name` is what is typed.
        meanwhile: what happens to it over and over while it is read.
        large: whether it takes long to measure a model on a tenth of it.
        typed: whether it is the text itself.
    """

    name: str
    write: Callable[[Path], object] | None = None
    meanwhile: Callable[[Path], None] | None = None
    large: bool = False
    typed: bool = False

    def word(self, sign: str) -> str:
        """As it stands behind the equals sign; `sign` says that a file is meant."""
        return self.name if self.typed else sign + self.name

    def make(self, folder: Path) -> None:
        if self.write:
            self.write(folder / self.name)


def raw(content: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(content)


def _folder(path: Path, mode: int = 0o755) -> None:
    path.mkdir()
    (path / "a.txt").write_text(SPEECH)
    path.chmod(mode)


def _locked(path: Path) -> None:
    path.write_text(SPEECH)
    path.chmod(0)


def _tangled(path: Path) -> None:
    """A folder with all that is no text in it beside one that is."""
    _folder(path)
    (path / "loop.txt").symlink_to("loop.txt")
    (path / "gone.txt").symlink_to("nowhere.txt")
    (path / "zero.txt").symlink_to("/dev/zero")
    (path / "up.txt").symlink_to("..")
    (path / "folder.txt").mkdir()
    os.mkfifo(path / "pipe.txt")
    (path / os.fsdecode(b"\xff\n.txt")).write_text(SPEECH)


def _partly_locked(path: Path) -> None:
    _folder(path)
    _folder(path / "below", 0)


def _shrink(path: Path) -> None:
    path.write_bytes(b"a b\n" * 2_000_000)
    os.truncate(path, 1_000_001)


def _vanish(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.write_bytes(b"a b\n" * 500_000)


def _flicker(path: Path) -> None:
    """A folder, some of whose files come and go."""
    for i in range(20):
        (path / f"{i}.txt").write_text(SPEECH)
    for i in range(20):
        (path / f"{i}.txt").unlink()


NOISE = random.Random(0).randbytes(20_000)
PIECES = {
    "cut.txt": ("Où est le café, où ? " * 500 + "é").encode()[:-1],
    "utf16.txt": SPEECH.encode("utf-16"),
    "utf16be.txt": b"\xfe\xff" + SPEECH.encode("utf-16-be"),
    "utf32.txt": SPEECH.encode("utf-32"),
    "bom.txt": b"\xef\xbb\xbf" + SPEECH.encode(),
    "latin.txt": "café\n".encode("latin-1") * 1000,
    "surrogates.txt": b"\xed\xa0\x80" * 1000,
    "overlong.txt": b"\xc0\x80" * 1000,
    "noise.txt": NOISE,
    "nul.txt": b"\0" * 10_000,
    "nuls.txt": SPEECH.encode().replace(b"k", b"\0"),
    "control.txt": bytes(range(32)) * 300,
    "crlf.txt": SPEECH.encode().replace(b"\n", b"\r\n"),
    "one_character.txt": b"a" * 10_000,
    "empty.txt": b"",
    "one.txt": b"a",
    "two.txt": b"ab",
    "short.txt": b"to be or not to be",
    "planes.txt": "".join(map(chr, range(0x10FF00, 0x10FFFF))).encode() * 40,
    "many_characters.txt": "".join(map(chr, range(0x4E00, 0x9FFF))).encode(),
    "new\nline.txt": SPEECH.encode(),
    "-m": SPEECH.encode(),
    "a=b,c.txt": SPEECH.encode(),
    "${seed}.txt": SPEECH.encode(),
    "'quoted'.txt": SPEECH.encode(),
    os.fsdecode(b"\xff\xfe.txt"): SPEECH.encode(),
    "back\\slash\\": SPEECH.encode(),
    "\x1b[31mred.txt": SPEECH.encode(),
    " ": SPEECH.encode(),
}
TEXTS = [Text(name, raw(content)) for name, content in PIECES.items()]
TEXTS += [
    Text("line.txt", lambda path: path.write_bytes(b"a long line " * 17_500_000), large=True),
    Text("pipe", os.mkfifo),
    Text("folder", _folder),
    Text("empty_folder", Path.mkdir),
    Text("tangled", _tangled),
    Text("locked_folder", lambda path: _folder(path, 0)),
    Text("unlisted_folder", lambda path: _folder(path, 0o311)),
    Text("unentered_folder", lambda path: _folder(path, 0o644)),
    Text("partly_locked", _partly_locked),
    Text("locked.txt", _locked),
    Text("shrinks.txt", _shrink, _shrink),
    Text("vanishes.txt", _vanish, _vanish),
    Text("flickers", _folder, _flicker),
    Text("loop.txt", lambda path: path.symlink_to(path)),
    Text("dangling.txt", lambda path: path.symlink_to("nowhere")),
    Text("device.txt", lambda path: path.symlink_to("/dev/zero")),
    Text("linked.txt", lambda path: path.symlink_to("text.txt")),
    Text("text.txt/below"),
    Text("~nobody_at_all/x"),
    Text("x" * 300),
    Text("x/" * 3000),
    *map(Text, ("/dev/zero", "/dev/null", "/dev/random", "/dev/full", "/dev/stdin", "/dev/tty", "/dev/fd/99")),
    *map(Text, ("/proc/self/mem", "/proc/self/environ", "/proc/kmsg", "/etc/passwd", "/", "", ".", "run")),
]
PROMPTS = [text for text in TEXTS if not text.large]
PROMPTS += [Text("large.txt", raw(b"The king " * 120_000))]
TYPED = [
    "",
    " ",
    "\n",
    "The",
    "Zebra",
    "\x01",
    "\x1b[31m",
    "T\tk",
    os.fsdecode(b"\xff\xfe"),
    "😀",
    "The king " * 12_000,
]
TYPED += [
    "null",
    "???",
    "@",
    "@ ",
    "@@",
    "'",
    "''",
    '"',
    "'The",
    "The'",
    "\\",
    "\\'",
    "T\\",
    "${seed}",
    "$",
    "${",
    "a=b",
]
TYPED += [
    "[a]",
    "{a:b}",
    "a,b",
    "choice(a,b)",
    "true",
    "1",
    "nan",
    "-m",
    "--help",
    "~",
    "T" * 16,
    "T" * 17,
    "T" * 512,
]
TYPED += ["T" * 1025, "e\u0301", "\u202ethe", "\ufeffthe", "\u2028", "\r", "\r\n"]
PROMPTS += [Text(word, typed=True) for word in TYPED]
