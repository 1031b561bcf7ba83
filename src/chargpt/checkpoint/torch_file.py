"""Checkpoints on disk: torch's own file of plain data and tensors, sealed with the digest of its bytes.

`torch.load` reads them as they are: the seal is the comment of the ZIP archive that a torch file is. It is looked
at before anything in the file is trusted, and it travels with the file. It guards against damage, not against
malice: for that nothing in a checkpoint is ever code (`weights_only`, `chargpt.config.instantiate`).
"""

import hashlib
import os
import shutil
import struct
import warnings
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import torch

from chargpt.checkpoint.migrations import migrate, migrate_state_dict
from chargpt.checkpoint.plain_data import find_non_plain
from chargpt.config.instantiate import SAVED_KEYS
from chargpt.errors import TrainingError, UserError
from chargpt.utils.atomic_write import atomic_write
from chargpt.version import __version__

KEY = "chargpt"  # our part of Lightning's checkpoint
VERSION_WITHOUT_DIGEST = "0.1."  # versions that had no seal
_DIGEST_PREFIX = b"chargpt sha256 "
_DIGEST_BYTES = len(_DIGEST_PREFIX) + 64


def save(checkpoint: dict[str, Any], path: Path) -> None:
    """Writes a checkpoint whole, or leaves what was there.

    Raises:
        TrainingError: the disk is full, or the like.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as file:
            torch.save(checkpoint, file)
            _append_digest(file)
    except (OSError, RuntimeError) as error:  # torch's writer hides the disk's own words
        cause = error if isinstance(error, OSError) else error.__context__
        reason = cause.strerror if isinstance(cause, OSError) else str(error).splitlines()[0]
        free = shutil.disk_usage(path.parent).free / 2**20 if path.parent.exists() else 0
        raise TrainingError(
            f"{path} cannot be saved: {reason} ({free:,.0f} MiB are free there). The checkpoint before it is "
            f"whole; make room, and go on from it with resume="
        ) from error


def read(path: Path) -> dict[str, Any]:
    """The content of a checkpoint of ours: plain data and tensors, never code.

    Raises:
        UserError: unreadable, damaged, of a later version, or not of this bench.
    """
    try:
        with path.open("rb") as file:
            sealed = _verify_digest(file)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    except _DigestMismatch:
        raise UserError(_damaged(path, "its digest is not that of its content")) from None
    try:
        with warnings.catch_warnings(action="ignore"):  # of a pickle that is none of ours
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        if not sealed and _version(checkpoint).startswith(VERSION_WITHOUT_DIGEST):
            with zipfile.ZipFile(path) as archive:  # it has at least a checksum for each tensor
                sealed = archive.testzip() is None
    except Exception as error:  # damaged bytes make the unpickler fail in any way
        raise UserError(_damaged(path, type(error).__name__)) from error
    check(checkpoint, path, "torch", devices=int)
    checkpoint[KEY] = migrate(checkpoint[KEY])
    for key in ("state_dict", "trained_state_dict"):
        if isinstance(checkpoint.get(key), dict):
            checkpoint[key] = migrate_state_dict(checkpoint[key], checkpoint[KEY]["config"])
    if not sealed:
        version = _version(checkpoint)
        raise UserError(f"{path} is damaged: chargpt {version} sealed its checkpoints with a digest, which is gone")
    return checkpoint


def check(content: Any, path: Path, form: str, **further: type) -> None:
    """That what was read from a file is a model of ours: weights, and all that is needed to use them.

    Args:
        content: anything.
        form: the kind of file, for the message.
        further: what else our part of it must hold, and of which type.

    Raises:
        UserError: it is not, or is of a later version.
    """
    if problem := _missing_parts(content, further):
        raise UserError(f"{path} is a {form} file, but not a checkpoint of this bench: {problem}")
    version = _version(content)
    if _parse_version(version) > _parse_version(__version__):
        raise UserError(f"{path} was written by chargpt {version}, and this is {__version__}: bring it up to date")


def _append_digest(file: BinaryIO) -> None:
    """Appends the digest, as the comment that a ZIP archive may end in."""
    file.seek(-2, os.SEEK_END)
    file.write(struct.pack("<H", _DIGEST_BYTES))  # the length of the comment, 0 until now
    file.seek(0)
    digest = hashlib.file_digest(file, "sha256").hexdigest()
    file.write(_DIGEST_PREFIX + digest.encode())


def _verify_digest(file: BinaryIO) -> bool:
    """Whether the file is what was sealed; False without a seal. Raises `_DigestMismatch` if it is something else."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - _DIGEST_BYTES))
    seal = file.read()
    if not seal.startswith(_DIGEST_PREFIX):
        return False
    file.seek(0)
    digest, left = hashlib.sha256(), size - _DIGEST_BYTES
    while left > 0 and (piece := file.read(min(left, 2**20))):
        digest.update(piece)
        left -= len(piece)
    if seal != _DIGEST_PREFIX + digest.hexdigest().encode():
        raise _DigestMismatch
    return True


class _DigestMismatch(Exception):
    pass


def _damaged(path: Path, reason: str) -> str:
    return (
        f"{path} is damaged or no checkpoint ({reason}): nothing was loaded from it. "
        f"Its neighbours in {path.parent} may be whole"
    )


def _version(checkpoint: Any) -> str:
    ours = checkpoint.get(KEY) if isinstance(checkpoint, dict) else None
    return str(ours.get("version", "")) if isinstance(ours, dict) else ""


def _parse_version(version: str) -> tuple[int, ...]:
    return tuple(int(piece) for piece in version.split(".") if piece.isdecimal())


def _missing_parts(checkpoint: Any, further: dict[str, type]) -> str:
    """What a file lacks to be a checkpoint of ours; empty if nothing."""
    ours = checkpoint.get(KEY) if isinstance(checkpoint, dict) else None
    if not isinstance(ours, dict):
        return f"it has no {KEY}"
    weights = checkpoint.get("state_dict")
    if not isinstance(weights, dict) or not all(
        isinstance(name, str) and isinstance(weight, torch.Tensor) for name, weight in weights.items()
    ):
        return "it has no weights"
    kinds = {"version": str, "config": dict, "tokenizer": dict, "corpus_sha256": str} | further
    if wrong := next((key for key, kind in kinds.items() if not isinstance(ours.get(key), kind)), None):
        return f"its {wrong} is missing or of a wrong type"
    if not isinstance(step := checkpoint.get("global_step"), int) or step < 0:
        return "it has no step"
    if lacking := next((key for key in SAVED_KEYS if key not in ours["config"]), None):
        return f"its config has no {lacking}"
    if found := find_non_plain(ours["config"], "config") or find_non_plain(ours["tokenizer"], "tokenizer"):
        return found
    groups = (key for key in ("model", "data") if not isinstance(ours["config"][key], dict))
    return next((f"{key} in its config is no group of settings" for key in groups), "")
