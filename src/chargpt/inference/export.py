"""export.py: the weights of a trained model as a safetensors file, for use elsewhere."""

from pathlib import Path

from chargpt.checkpoint import safetensors_file
from chargpt.config.instantiate import SAVED, SAVED_SINCE
from chargpt.errors import Mistake
from chargpt.inference.pretrained import TrainedModel, latest, load
from chargpt.utils.paths import shown, typed_path
from chargpt.version import __version__


def export(run: str, file: str | None) -> None:
    """Writes the file, and prints where it went and what is in it.

    Args:
        file: None for `model.safetensors` in the run directory, or for a file beside the checkpoint that `run` is.

    Raises:
        Mistake: no such run, or the file cannot be written, or would take another's place.
    """
    source = latest() if run == "latest" else typed_path("run", run)
    trained = load(source)
    if file is not None:
        path = typed_path("file", file)
    elif source.is_dir():
        path = source / f"model{safetensors_file.SUFFIX}"
    else:
        path = source.with_suffix(safetensors_file.SUFFIX)
    try:
        _check(path)
        digest = write(trained, path)
        size = path.stat().st_size
    except OSError as error:
        raise Mistake(f"{path} cannot be written: {error.strerror}. Choose another: file=FILE") from error
    numbers = sum(weight.numel() for weight in trained.model.parameters())
    rows = {
        "run": trained.path,
        "weights": f"{numbers:,} after {trained.step:,} steps",
        "file": path,
        "size": f"{size:,} bytes",
        "sha256": f"{digest} of its content",
    }
    for key, value in rows.items():
        print(f"{key:>10}  {shown(str(value))}")


def write(trained: TrainedModel, path: Path) -> str:
    """Writes a model as it is used: a run that averages its weights has the average in its checkpoints.

    Returns:
        The digest of the content.

    Raises:
        OSError: the disk is full, or the like.
    """
    tied = trained.model.tied_names()
    weights = {name: weight for name, weight in trained.model.state_dict().items() if name not in tied}
    ours = {
        "version": __version__,
        "config": {key: trained.config[key] for key in (*SAVED, *SAVED_SINCE) if key in trained.config},
        "tokenizer": trained.tokenizer.as_config(),
        "corpus_sha256": trained.corpus_sha256,
    }
    content = {"state_dict": weights, "global_step": trained.step, safetensors_file.KEY: ours}
    return safetensors_file.save(content, path)


def _check(path: Path) -> None:
    """Raises `Mistake` if there is no place for the file; only an earlier export gives way to it."""
    if path.is_dir():
        raise Mistake(f"file={path} is a folder: name the file as well, file={path / 'model.safetensors'}")
    if not path.parent.is_dir():
        raise Mistake(f"file={path}: there is no folder {path.parent} (looked from {Path.cwd()})")
    if path.exists() and not (path.is_file() and safetensors_file.recognised(path)):
        raise Mistake(f"file={path} is there, and is no safetensors file to be replaced: choose another name")
