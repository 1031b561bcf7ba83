"""export.py: writes the weights of a trained model to a safetensors file."""

from collections.abc import Sequence
from pathlib import Path

from chargpt.checkpoint import safetensors_file
from chargpt.errors import UserError
from chargpt.inference.export import export_model
from chargpt.inference.pretrained import load
from chargpt.runs.latest import find_run
from chargpt.utils.paths import printable, resolve_path


def export(run: str, file: str | None, draft: bool, trust: Sequence[str]) -> None:
    """Writes the file, and prints its path, size and checksum.

    Args:
        file: None for `model.safetensors` in the run directory, or for a file next to the checkpoint `run`.
        draft: as in `export_model`.

    Raises:
        UserError: no such run, or the file cannot be written, or would replace another kind of file.
    """
    source = find_run("run", run)
    trained = load(source, trust=trust)
    if file is not None:
        path = resolve_path("file", file)
    elif source.is_dir():
        path = source / f"model{safetensors_file.SUFFIX}"
    else:
        path = source.with_suffix(safetensors_file.SUFFIX)
    try:
        _check(path)
        digest = export_model(trained, path, draft)
        size = path.stat().st_size
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}. Choose another: file=FILE") from error
    parameters = sum(weight.numel() for weight in trained.model.parameters())
    rows = {
        "run": trained.path,
        "weights": f"{parameters:,} after {trained.step:,} steps",
        "file": path,
        "size": f"{size:,} bytes",
        "sha256": f"{digest} of the content",
    }
    for key, value in rows.items():
        print(f"{key:>10}  {printable(str(value))}")


def _check(path: Path) -> None:
    """Raises `UserError` if the folder does not exist, or the file exists and is not an earlier export."""
    if path.is_dir():
        raise UserError(f"file={path} is a folder: add a file name, file={path / 'model.safetensors'}")
    if not path.parent.is_dir():
        raise UserError(f"file={path}: there is no folder {path.parent} (relative to {Path.cwd()})")
    if path.exists() and not (path.is_file() and safetensors_file.is_safetensors(path)):
        raise UserError(f"file={path} already exists and is not a safetensors file: choose another name")
