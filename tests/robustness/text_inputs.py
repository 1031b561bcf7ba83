"""Invalid and unusual texts, files and folders for the fuzzer."""

import os
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

SPEECH = "The king shall speak of love and war.\n" * 300


@dataclass(frozen=True)
class TextInput:
    """A value for a setting that takes a text or the path of one.

    Attributes:
        name: a path, relative to the case's folder; or the text itself, if `literal`.
        create: creates the file or folder at its path; None if nothing is to be created.
        interfere: changes the file repeatedly while a command reads it.
        large: whether evaluating a model on a tenth of it takes long.
        literal: whether `name` is the text itself.
    """

    name: str
    create: Callable[[Path], object] | None = None
    interfere: Callable[[Path], None] | None = None
    large: bool = False
    literal: bool = False

    def value(self, prefix: str) -> str:
        """The value of the setting; `prefix` marks a path."""
        return self.name if self.literal else prefix + self.name


def _file(content: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(content)


def _folder(path: Path, mode: int = 0o755) -> None:
    path.mkdir()
    (path / "a.txt").write_text(SPEECH)
    path.chmod(mode)


def _unreadable_file(path: Path) -> None:
    path.write_text(SPEECH)
    path.chmod(0)


def _mixed_folder(path: Path) -> None:
    """A folder with a text, and symbolic links and folders that are named like texts."""
    _folder(path)
    (path / "loop.txt").symlink_to("loop.txt")
    (path / "gone.txt").symlink_to("nowhere.txt")
    (path / "up.txt").symlink_to("..")
    (path / "folder.txt").mkdir()
    (path / os.fsdecode(b"\xff\n.txt")).write_text(SPEECH)


def _partly_unreadable_folder(path: Path) -> None:
    _folder(path)
    _folder(path / "below", 0)


def _shrink(path: Path) -> None:
    path.write_bytes(b"a b\n" * 2_000_000)
    os.truncate(path, 1_000_001)


def _delete(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.write_bytes(b"a b\n" * 500_000)


def _create_and_delete_files(path: Path) -> None:
    for i in range(20):
        (path / f"{i}.txt").write_text(SPEECH)
    for i in range(20):
        (path / f"{i}.txt").unlink()


NOISE = random.Random(0).randbytes(20_000)
FILES = {
    "truncated.txt": ("Où est le café, où ? " * 500 + "é").encode()[:-1],
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
TEXTS = [TextInput(name, _file(content)) for name, content in FILES.items()]
TEXTS += [
    TextInput("line.txt", lambda path: path.write_bytes(b"a long line " * 17_500_000), large=True),
    TextInput("folder", _folder),
    TextInput("empty_folder", Path.mkdir),
    TextInput("mixed_folder", _mixed_folder),
    TextInput("unreadable_folder", lambda path: _folder(path, 0)),
    TextInput("unlistable_folder", lambda path: _folder(path, 0o311)),
    TextInput("unsearchable_folder", lambda path: _folder(path, 0o644)),
    TextInput("partly_unreadable", _partly_unreadable_folder),
    TextInput("unreadable.txt", _unreadable_file),
    TextInput("shrinks.txt", _shrink, _shrink),
    TextInput("deleted.txt", _delete, _delete),
    TextInput("changing_folder", _folder, _create_and_delete_files),
    TextInput("loop.txt", lambda path: path.symlink_to(path)),
    TextInput("dangling.txt", lambda path: path.symlink_to("nowhere")),
    TextInput("linked.txt", lambda path: path.symlink_to("text.txt")),
    TextInput("text.txt/below"),
    TextInput("~nobody_at_all/x"),
    TextInput("x" * 300),
    TextInput("x/" * 3000),
    *map(TextInput, ("/etc/passwd", "/", "", ".", "run")),
]
PROMPTS = [text for text in TEXTS if not text.large]
PROMPTS += [TextInput("large.txt", _file(b"The king " * 120_000))]
LITERALS = [
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
LITERALS += [
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
LITERALS += [
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
LITERALS += ["T" * 1025, "e\u0301", "\u202ethe", "\ufeffthe", "\u2028", "\r", "\r\n"]
PROMPTS += [TextInput(text, literal=True) for text in LITERALS]
