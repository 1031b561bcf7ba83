"""The weights alone on disk: a safetensors file, with all that makes a model of them in its metadata.

Every reader of safetensors opens it. The format has no checksum of its own, so the metadata holds a digest of all
that the file says. It guards against damage, not against malice: for that the metadata is JSON, and the config in
it goes the way of a checkpoint's (`chargpt.checkpoint.torch_file.check`, `chargpt.config.instantiate`).
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from chargpt.checkpoint import torch_file
from chargpt.checkpoint.migrations import migrate, migrate_state_dict
from chargpt.checkpoint.torch_file import KEY
from chargpt.errors import UserError
from chargpt.utils.atomic_write import atomic_write

SUFFIX = ".safetensors"
_TEXT_KEYS = ("version", "corpus_sha256")  # in the metadata as they are
_JSON_KEYS = ("config", "tokenizer", "step")  # in the metadata as JSON
_DIGEST_KEY = "sha256"


def is_safetensors(path: Path) -> bool:
    """Whether a file is named like one of these, or begins like one: the length of a header, and its brace."""
    if path.suffix == SUFFIX:
        return True
    try:
        with path.open("rb") as file:
            return file.read(9)[8:] == b"{"
    except OSError:
        return False


def save(content: dict[str, Any], path: Path) -> str:
    """Writes the file whole, or leaves what was there; the digest of its content.

    Args:
        content: as `read` gives it, the weights without shared memory: a tied weight under one of its names.

    Raises:
        OSError: the disk is full, or the like.
    """
    from safetensors.torch import save as to_bytes

    weights = {name: weight.detach().cpu().contiguous() for name, weight in content["state_dict"].items()}
    said = content[KEY] | {"step": content["global_step"]}
    metadata = {"format": "pt"}  # some loaders ask for it
    metadata |= {key: said[key] for key in _TEXT_KEYS}
    metadata |= {key: json.dumps(said[key]) for key in _JSON_KEYS}
    metadata[_DIGEST_KEY] = digest = _digest(weights, metadata)
    with atomic_write(path) as file:
        file.write(to_bytes(weights, metadata))
    return digest


def read(path: Path) -> dict[str, Any]:
    """What of a checkpoint's content is in the file, under the same keys; the weights by their names in the model.

    Raises:
        UserError: unreadable, damaged, of a later version, or not of this bench.
    """
    from safetensors import safe_open

    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
        digest = metadata.pop(_DIGEST_KEY, None)
        intact = digest == _digest(weights, metadata)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    except Exception as error:  # a header may say anything
        raise UserError(
            f"{path} is damaged or no safetensors file ({type(error).__name__}): nothing was loaded from it"
        ) from error
    if lacking := [key for key in (*_TEXT_KEYS, *_JSON_KEYS) if key not in metadata] or [_DIGEST_KEY] * (
        digest is None
    ):
        raise UserError(
            f"{path} is a safetensors file, but not one of this bench: its metadata has no {lacking[0]}. "
            f"export.py writes such files"
        )
    if not intact:
        raise UserError(f"{path} is damaged: its digest is not that of its content. Export it again, export.py")
    try:
        said = {key: json.loads(metadata[key]) for key in _JSON_KEYS}
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not one of this bench: its metadata is no JSON") from error
    ours = {key: metadata[key] for key in _TEXT_KEYS} | {key: said[key] for key in ("config", "tokenizer")}
    content = {"state_dict": weights, "global_step": said["step"], KEY: ours}
    torch_file.check(content, path, "safetensors")
    content[KEY] = migrate(ours)
    content["state_dict"] = migrate_state_dict(weights, content[KEY]["config"])
    return content


def _digest(weights: dict[str, Tensor], metadata: dict[str, str]) -> str:
    """sha256 of each weight's name, type, shape and bytes, in the order of the names, and of the metadata."""
    digest = hashlib.sha256()
    for name, weight in sorted(weights.items()):
        digest.update(json.dumps([name, str(weight.dtype), list(weight.shape)]).encode())
        digest.update(weight.reshape(-1).view(torch.uint8).numpy())
    digest.update(json.dumps(metadata, sort_keys=True).encode())
    return digest.hexdigest()
