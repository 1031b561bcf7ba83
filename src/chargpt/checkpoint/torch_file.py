"""Reads and writes checkpoints: files of `torch.save` with plain data and tensors, followed by a SHA-256 checksum.

The checksum is stored as the comment of the ZIP archive, so `torch.load` reads the file unchanged. It is verified
before anything else is read. It detects damage, not manipulation. Because files may be untrusted, no code in a
checkpoint is ever run (`weights_only`, `chargpt.config.instantiate`).
"""

import hashlib
import os
import shutil
import struct
import warnings
import zipfile
from collections.abc import Mapping
from io import BufferedRandom
from pathlib import Path
from typing import Any, BinaryIO

import torch

from chargpt.checkpoint.migrations import migrate, migrate_state_dict
from chargpt.checkpoint.plain_data import find_non_plain
from chargpt.config.instantiate import SAVED_KEYS
from chargpt.errors import TrainingError, UserError
from chargpt.utils.atomic_write import atomic_write
from chargpt.version import __version__

KEY = "chargpt"  # the entry that chargpt adds to Lightning's checkpoint
VERSION_WITHOUT_DIGEST = "0.1."  # checkpoints of these versions have no checksum
_DIGEST_PREFIX = b"chargpt sha256 "
_DIGEST_BYTES = len(_DIGEST_PREFIX) + 64


def save(checkpoint: dict[str, Any], path: Path) -> None:
    """Writes a checkpoint atomically.

    Raises:
        TrainingError: the file cannot be written, for example because the disk is full.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as file:
            torch.save(checkpoint, file)
            _append_digest(file)
    except (OSError, RuntimeError) as error:  # PyTorch's writer replaces the OSError by a RuntimeError
        cause = error if isinstance(error, OSError) else error.__context__
        reason = cause.strerror if isinstance(cause, OSError) else str(error).splitlines()[0]
        free = shutil.disk_usage(path.parent).free / 2**20 if path.parent.exists() else 0
        raise TrainingError(
            f"{path} cannot be saved: {reason} ({free:,.0f} MiB free). The previous checkpoint is intact: "
            f"free disk space, and resume from it with resume="
        ) from error


def find_unloadable(value: Any, path: str) -> str:
    """Describes the first value that `torch.load` with `weights_only=True` refuses; returns "" if there is none."""
    if isinstance(value, Mapping):
        items = [(f"{path}[{key!r}]", item) for key, item in value.items()]
    elif isinstance(value, list | tuple | set | frozenset):
        items = [(f"{path}[{i}]", item) for i, item in enumerate(value)]
    elif value is None or isinstance(value, str | bytes | int | float | complex | torch.Tensor):
        return ""
    else:
        return f"{path} is a {type(value).__name__}"
    return next((problem for name, item in items if (problem := find_unloadable(item, name))), "")


def read(path: Path) -> dict[str, Any]:
    """Reads a checkpoint of chargpt: plain data and tensors, never code.

    Raises:
        UserError: the file is unreadable, damaged, from a later version, or not written by chargpt.
    """
    try:
        with path.open("rb") as file:
            verified = _verify_digest(file)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    except _DigestMismatch:
        raise UserError(_damaged(path, "its checksum does not match its content")) from None
    try:
        with warnings.catch_warnings(action="ignore"):  # warnings about a pickle that chargpt did not write
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        if not verified and _version(checkpoint).startswith(VERSION_WITHOUT_DIGEST):
            with zipfile.ZipFile(path) as archive:  # which has a checksum for each tensor
                verified = archive.testzip() is None
    except Exception as error:  # the unpickler can raise anything for damaged bytes
        raise UserError(_damaged(path, type(error).__name__)) from error
    check(checkpoint, path, "torch", devices=int)
    if not verified:
        version = _version(checkpoint)
        raise UserError(f"{path} is damaged: the checksum at the end of a chargpt {version} checkpoint is missing")
    return migrate_content(checkpoint)


def migrate_content(content: dict[str, Any]) -> dict[str, Any]:
    """The content of a checked file with the current names of targets, settings and weights."""
    entry = migrate(content[KEY])
    weights = {
        key: migrate_state_dict(content[key], entry["config"])
        for key in ("state_dict", "trained_state_dict")
        if isinstance(content.get(key), dict)
    }
    return content | weights | {KEY: entry}


def check(content: Any, path: Path, file_format: str, **extra_keys: type) -> None:
    """Checks that the content of a file is a chargpt model: weights, and everything that is needed to use them.

    Args:
        content: anything.
        file_format: for the message.
        extra_keys: further required keys of the chargpt entry, with their types.

    Raises:
        UserError: the content is not a chargpt model, or is from a later version.
    """
    if problem := _find_problem(content, extra_keys):
        raise UserError(f"{path} is a {file_format} file, but not a chargpt checkpoint: {problem}")
    version = _version(content)
    if _parse_version(version) > _parse_version(__version__):
        raise UserError(f"{path} was written by chargpt {version}, but this is {__version__}: update chargpt")


def _append_digest(file: BufferedRandom) -> None:
    """Appends the digest as the comment at the end of the ZIP archive."""
    file.seek(-2, os.SEEK_END)
    file.write(struct.pack("<H", _DIGEST_BYTES))  # the length of the comment, 0 until now
    file.seek(0)
    digest = hashlib.file_digest(file, "sha256").hexdigest()
    file.write(_DIGEST_PREFIX + digest.encode())


def _verify_digest(file: BinaryIO) -> bool:
    """Returns False if the file has no digest, and True if the digest matches. Raises `_DigestMismatch` otherwise."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - _DIGEST_BYTES))
    comment = file.read()
    if not comment.startswith(_DIGEST_PREFIX):
        return False
    file.seek(0)
    digest, remaining = hashlib.sha256(), size - _DIGEST_BYTES
    while remaining > 0 and (chunk := file.read(min(remaining, 2**20))):
        digest.update(chunk)
        remaining -= len(chunk)
    if comment != _DIGEST_PREFIX + digest.hexdigest().encode():
        raise _DigestMismatch
    return True


class _DigestMismatch(Exception):
    pass


def _damaged(path: Path, reason: str) -> str:
    return (
        f"{path} is damaged or not a checkpoint ({reason}): nothing was loaded from it. "
        f"Other checkpoints in {path.parent} may be intact"
    )


def _version(checkpoint: Any) -> str:
    entry = checkpoint.get(KEY) if isinstance(checkpoint, dict) else None
    return str(entry.get("version", "")) if isinstance(entry, dict) else ""


def _parse_version(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in version.split(".") if number.isdecimal())


def _find_problem(checkpoint: Any, extra_keys: dict[str, type]) -> str:
    """Describes why the content of a file is not a chargpt checkpoint; returns "" if it is one."""
    entry = checkpoint.get(KEY) if isinstance(checkpoint, dict) else None
    if not isinstance(entry, dict):
        return f"it has no entry {KEY}"
    weights = checkpoint.get("state_dict")
    if not isinstance(weights, dict) or not all(
        isinstance(name, str) and isinstance(weight, torch.Tensor) for name, weight in weights.items()
    ):
        return "it has no weights"
    types = {"version": str, "config": dict, "tokenizer": dict, "corpus_sha256": str} | extra_keys
    if invalid := next((key for key, kind in types.items() if not isinstance(entry.get(key), kind)), None):
        return f"its {invalid} is missing or has the wrong type"
    if not isinstance(step := checkpoint.get("global_step"), int) or step < 0:
        return "it has no valid global_step"
    if missing := next((key for key in SAVED_KEYS if key not in entry["config"]), None):
        return f"its config has no {missing}"
    if problem := find_non_plain(entry["config"], "config") or find_non_plain(entry["tokenizer"], "tokenizer"):
        return problem
    groups = (key for key in ("model", "data") if not isinstance(entry["config"][key], dict))
    return next((f"{key} in its config is not a group of settings" for key in groups), "")
