"""Reads and writes exported models: safetensors files with the config and tokenizer in the metadata.

Any safetensors reader can open them. The format has no checksum, so the metadata contains a digest of the content.
The digest detects damage, not manipulation. Because files may be untrusted, the metadata is JSON, and its config is
checked like that of a checkpoint (`chargpt.checkpoint.torch_file.check`, `chargpt.config.instantiate`).
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from chargpt.checkpoint import torch_file
from chargpt.checkpoint.torch_file import KEY
from chargpt.errors import UserError
from chargpt.utils.atomic_write import atomic_write

SUFFIX = ".safetensors"
_TEXT_KEYS = ("version", "corpus_sha256")  # stored as plain strings in the metadata
_JSON_KEYS = ("config", "tokenizer", "step")  # stored as JSON in the metadata
_DIGEST_KEY = "sha256"


def is_safetensors(path: Path) -> bool:
    """Returns whether a file has the suffix of a safetensors file, or starts like one: header length and "{"."""
    if path.suffix == SUFFIX:
        return True
    try:
        with path.open("rb") as file:
            return file.read(9)[8:] == b"{"
    except OSError:
        return False


def save(content: dict[str, Any], path: Path) -> str:
    """Writes the file atomically and returns the digest of its content.

    Args:
        content: as `read` returns it. No two weights may share memory: a tied weight has only one of its names.

    Raises:
        OSError: the file cannot be written, for example because the disk is full.
    """
    weights = {name: weight.detach().cpu().contiguous() for name, weight in content["state_dict"].items()}
    values = content[KEY] | {"step": content["global_step"]}
    metadata = {"format": "pt"}  # required by some loaders
    metadata |= {key: values[key] for key in _TEXT_KEYS}
    metadata |= {key: json.dumps(values[key]) for key in _JSON_KEYS}
    metadata[_DIGEST_KEY] = digest = _digest(weights, metadata)
    with atomic_write(path) as file:
        file.write(to_bytes(weights, metadata))
    return digest


def read(path: Path) -> dict[str, Any]:
    """Reads a file. Returns its content with the keys of a checkpoint; the weights have their names in the model.

    Raises:
        UserError: the file is unreadable, damaged, from a later version, or not written by chargpt.
    """
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        digest = metadata.pop(_DIGEST_KEY, None)
        intact = digest == _digest(weights, metadata)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    except Exception as error:  # the header of an untrusted file can contain anything
        raise UserError(
            f"{path} is damaged or not a safetensors file ({type(error).__name__}): nothing was loaded from it"
        ) from error
    missing = [key for key in (*_TEXT_KEYS, *_JSON_KEYS) if key not in metadata]
    missing += [_DIGEST_KEY] * (digest is None)
    if missing:
        raise UserError(
            f"{path} is a safetensors file, but not written by chargpt: its metadata has no {missing[0]}. "
            f"Create the file with export.py"
        )
    if not intact:
        raise UserError(f"{path} is damaged: its checksum does not match its content. Export it again with export.py")
    try:
        values = {key: json.loads(metadata[key]) for key in _JSON_KEYS}
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} was not written by chargpt: its metadata is not valid JSON") from error
    entry = {key: metadata[key] for key in _TEXT_KEYS} | {key: values[key] for key in ("config", "tokenizer")}
    content = {"state_dict": weights, "global_step": values["step"], KEY: entry}
    torch_file.check(content, path, "safetensors")
    return torch_file.migrate_content(content)


def _digest(weights: dict[str, Tensor], metadata: dict[str, str]) -> str:
    """Returns the SHA-256 of the name, dtype, shape and bytes of each weight, sorted by name, and of the metadata."""
    digest = hashlib.sha256()
    for name, weight in sorted(weights.items()):
        digest.update(json.dumps([name, str(weight.dtype), list(weight.shape)]).encode())
        digest.update(weight.reshape(-1).view(torch.uint8).numpy().data)
    digest.update(json.dumps(metadata, sort_keys=True).encode())
    return digest.hexdigest()
