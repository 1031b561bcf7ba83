"""Text files of the user: which files of a folder are read, and errors for files that are not UTF-8 text."""

import glob
import os
import shlex
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from chargpt.errors import UserError
from chargpt.utils.paths import printable, resolve_path

SUFFIXES = (".txt", ".md")
SYSTEM_FOLDERS = ("__MACOSX", "__pycache__", "$RECYCLE.BIN", "System Volume Information", "lost+found")

# Files that are not text: their first bytes, what they are, and the command that makes a text file of {path}.
SIGNATURES = (
    (b"\x1f\x8b", "compressed by gzip", "gzip -dc {path} > {text}"),
    (b"BZh91AY&SY", "compressed by bzip2", "bzip2 -dc {path} > {text}"),
    (b"\xfd7zXZ\x00", "compressed by xz", "xz -dc {path} > {text}"),
    (b"\x28\xb5\x2f\xfd", "compressed by Zstandard", "zstd -dc {path} > {text}"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", "7z x {path}"),
    (b"Rar!\x1a\x07", "a RAR archive", "unrar x {path}"),
    (b"PK\x03\x04", "a zip archive", "unzip {path} -d {folder}"),
    (b"%PDF-", "a PDF", "pdftotext {path} {text}"),
    (b"{\\rtf", "a rich text document (RTF)", "pandoc {path} -t plain -o {text}"),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an Office document", "soffice --headless --convert-to txt:Text {path}"),
)
# Zip archives that are documents: a name in the archive.
DOCUMENTS = {
    b"word/": ("a Word document", "pandoc {path} -t plain -o {text}"),
    b"mimetypeapplication/epub": ("an e-book (EPUB)", "pandoc {path} -t plain -o {text}"),
    b"mimetypeapplication/vnd.oasis": ("an OpenDocument file", "soffice --headless --convert-to txt:Text {path}"),
    b"xl/": ("an Excel workbook", "soffice --headless --convert-to csv {path}"),
    b"ppt/": ("a PowerPoint presentation", "soffice --headless --convert-to pdf {path}"),
}
# Byte order marks; UTF-32's first, because its little-endian mark begins with that of UTF-16.
MARKS = {b"\xff\xfe\0\0": "UTF-32", b"\0\0\xfe\xff": "UTF-32", b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}


class TextFiles:
    """A corpus of UTF-8 text files, joined in order; a byte order mark at the start of a file is dropped.

    Args:
        path: a file, a folder, a glob pattern (`books/*.txt`, `**` for subfolders), or a list of these. The files of a
            folder or pattern are sorted by path. A file that is selected twice is read once.
        suffixes: which files of a folder and its subfolders are read; in upper or lower case. Hidden files and those
            of operating systems (`.git`, `__MACOSX`) are not.

    Attributes:
        files: those that have been read; empty before `read`.
        left_out: the number of a folder's other files, by suffix; hidden ones count as `hidden`.
    """

    def __init__(self, path: str | Path | Sequence[str | Path], suffixes: Sequence[str] = SUFFIXES):
        paths = [path] if isinstance(path, str | Path) else list(path)
        if not paths or not all(str(entry) for entry in paths):
            raise UserError("data.path is empty: give a UTF-8 text file, or a folder of text files")
        if isinstance(suffixes, str) or not suffixes or not all(str(suffix).startswith(".") for suffix in suffixes):
            raise UserError(f"data.suffixes={suffixes}: it must be a list of suffixes, for example [.txt,.py]")
        self._paths = [resolve_path("data.path", entry) for entry in paths]
        self._suffixes = tuple(str(suffix).lower() for suffix in suffixes)
        self.path = self._paths[0]
        more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
        self.name = (self.path.name or str(self.path)) + more
        self.files: list[Path] = []
        self.left_out: Counter[str] = Counter()

    def read(self) -> str:
        self.left_out.clear()
        files = {os.path.realpath(file): file for path in self._paths for file in self._find(path)}
        self.files = list(files.values())
        text = "".join(read_utf8(file, in_folder=file not in self._paths) for file in self.files)
        if not text:
            raise UserError(f"{self._shown()} is empty: there is no text to train on. Choose another data.path")
        return text

    def describe(self) -> str:
        """How many files were read and left out, by suffix; empty for a single file that was given as such."""
        if len(self._paths) == 1 and self.files == self._paths:
            return ""
        read = f"{_count(len(self.files), 'file')} ({_by_suffix(Counter(_kind(file) for file in self.files))})"
        if not self.left_out:
            return read
        suffix, count = max(self.left_out.items(), key=lambda item: (item[0].startswith("."), item[1]))
        suffixes = ",".join((*self._suffixes, suffix))
        hint = f"; to read them: data.suffixes=[{suffixes}]" if suffix[0] == "." and count > len(self.files) else ""
        return f"{read}, left out {_by_suffix(self.left_out)}{hint}"

    def _find(self, path: Path) -> Iterable[Path]:
        if path.is_dir():
            return self._files_of(path)
        if path.exists() or not glob.has_magic(str(path)):
            return [path]
        matches = sorted(map(Path, glob.glob(str(path), recursive=True)))  # noqa: PTH207 - the pattern may be an absolute path
        files = [file for match in matches for file in (self._files_of(match) if match.is_dir() else [match])]
        if not files:
            raise UserError(f"data.path={path} matches no file (working directory: {Path.cwd()})")
        return files

    def _files_of(self, folder: Path) -> list[Path]:
        try:
            files = sorted(self._walk(folder))
        except OSError as error:  # for example, a folder that is deleted meanwhile
            raise UserError(f"the folder {folder} cannot be read: {error.strerror} ({error.filename})") from error
        if not files:
            found = f" but {_by_suffix(self.left_out)}" if self.left_out else ""
            raise UserError(
                f"the folder {folder} contains no file that ends in {' or '.join(self._suffixes)}{found}. Choose its "
                f"suffixes: data.suffixes=[.txt,.csv], or give the file itself: data.path=FILE"
            )
        return files

    def _walk(self, folder: Path) -> Iterator[Path]:
        def fail(error: OSError) -> None:
            raise error

        for parent, folders, names in os.walk(folder, onerror=fail):
            hidden = [name for name in folders if _is_hidden(name)]
            self.left_out["hidden"] += sum(len(names) for name in hidden for _, _, names in os.walk(f"{parent}/{name}"))
            folders[:] = [name for name in folders if name not in hidden]
            for path in (Path(parent, name) for name in names):
                if _is_hidden(path.name):
                    self.left_out["hidden"] += 1
                elif path.suffix.lower() not in self._suffixes:
                    self.left_out[_kind(path)] += 1
                elif path.is_file():
                    yield path
        self.left_out += Counter()  # without zeros

    def _shown(self) -> str:
        return ", ".join(map(str, self._paths))


def read_utf8(path: Path, setting: str = "data.path", in_folder: bool = False) -> str:
    """The text of a UTF-8 file, without a byte order mark.

    Args:
        setting: that names the file, for error messages.
        in_folder: whether the file is read because of its folder: the command in a message then replaces it.

    Raises:
        UserError: the file cannot be read, or is not text in UTF-8; the message says how to convert it.
    """
    try:
        raw = path.read_bytes()
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist (working directory: {Path.cwd()}). Check {setting}") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except MemoryError as error:  # for example, /dev/zero
        raise UserError(f"{path} is larger than the memory of this machine. Choose another {setting}") from error
    if other := _other_format(raw):
        kind, command = other
        folder = path.with_suffix("")
        text = folder if folder.suffix in SUFFIXES else path.with_suffix(".txt")  # of book.txt.gz, or of book.pdf
        outputs = {"text": path.with_suffix(".plain.txt") if text.exists() else text, "folder": folder}
        command = command.format_map({k: shlex.quote(str(v)) for k, v in {"path": path, **outputs}.items()})
        raise UserError(f"{path} is {kind}, not a text file. Convert it: {command}")
    if encoding := _wide_encoding(raw):
        raise UserError(f"{path} is not UTF-8 but {encoding}. Convert it: {_iconv(path, encoding, in_folder)}")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8: byte 0x{raw[error.start]:02x} at offset {error.start}. Convert it, for example from "
            f"the encoding of Windows: {_iconv(path, 'WINDOWS-1252', in_folder)}"
        ) from error
    if (offset := text.find("\0")) >= 0:
        raise UserError(
            f"{path} is not a text file: it contains a NUL character (character {offset:,}). Choose another {setting}"
        )
    return text


def without_mark(text: str) -> str:
    """A text without a byte order mark at its start, which some editors insert."""
    return text.removeprefix("\ufeff")


def _other_format(raw: bytes) -> tuple[str, str] | None:
    """What a file is that is not text, and the command that converts it."""
    for start, kind, command in SIGNATURES:
        if raw.startswith(start):
            documents = DOCUMENTS.items() if start.startswith(b"PK") else ()
            return next((document for name, document in documents if name in raw), (kind, command))
    return ("a tar archive", "tar -xf {path}") if raw[257:262] == b"ustar" else None


def _wide_encoding(raw: bytes) -> str | None:
    """UTF-16 or UTF-32, if the bytes are text in that encoding: with a mark, or mostly ASCII characters."""
    if mark := next((mark for mark in MARKS if raw.startswith(mark)), None):
        return MARKS[mark]
    start = raw[: 1 << 16]
    for encoding, width, position in (("UTF-32LE", 4, 0), ("UTF-32BE", 4, 3), ("UTF-16LE", 2, 0), ("UTF-16BE", 2, 1)):
        zeros = [start[i::width].count(0) / max(1, len(start[i::width])) for i in range(width)]
        if all(share < 0.1 if i == position else share > 0.5 for i, share in enumerate(zeros)):
            return encoding
    return None


def _iconv(path: Path, encoding: str, replace: bool) -> str:
    source, target = shlex.quote(str(path)), shlex.quote(str(path.with_suffix(".utf8.txt")))
    return f"iconv -f {encoding} -t UTF-8 {source} > {target}" + (f" && mv {target} {source}" if replace else "")


def _is_hidden(name: str) -> bool:
    return name.startswith((".", "~$")) or name in SYSTEM_FOLDERS


def _kind(path: Path) -> str:
    return printable(path.suffix.lower()) or "without a suffix"


def _by_suffix(counts: Counter[str]) -> str:
    shown = [f"{count:,} {kind}" for kind, count in counts.most_common(4)]
    more = sum(counts.values()) - sum(count for _, count in counts.most_common(4))
    return ", ".join(shown + ([f"{more:,} others"] if more else []))


def _count(number: int, name: str) -> str:
    return f"{number:,} {name}{'' if number == 1 else 's'}"
