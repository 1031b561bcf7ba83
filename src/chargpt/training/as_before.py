"""A run directory as it was before, where a run turns out to have no state to go on from."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from chargpt.errors import Mistake
from chargpt.training.checkpoint import Checkpoints
from chargpt.training.prepare import Run
from chargpt.training.tensorboard import TensorBoard
from chargpt.whole import whole


@contextlib.contextmanager
def as_before(run: Run) -> Iterator[None]:
    """Puts the run's directory back as it was if a `Mistake` comes before the first step.

    Of the checkpoints only `best.ckpt` may be another by then.
    """
    folder, best = run.directory.path, run.directory.best
    kept = best.with_name(f".{best.name}-before")
    contents = {path: path.read_bytes() for path in _files(folder) if not _only_grows(path)}
    lengths = {path: path.stat().st_size for path in _files(folder) if _only_grows(path)}
    if best.exists():
        Checkpoints.copy(best, kept)
    try:
        yield
    except Mistake:
        if run.module.steps_here == 0:
            for logger in run.trainer.loggers:
                if isinstance(logger, TensorBoard):
                    logger.experiment.close()
            _put_back(folder, contents, lengths)
            if kept.exists():
                kept.replace(best)
        raise
    finally:
        kept.unlink(missing_ok=True)


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and path.parent.name != "checkpoints"]


def _only_grows(path: Path) -> bool:
    return path.suffix == ".log" or path.name.startswith("events.")


def _put_back(folder: Path, contents: dict[Path, bytes], lengths: dict[Path, int]) -> None:
    for path in _files(folder):
        if path in lengths:
            os.truncate(path, lengths[path])
        elif path not in contents:
            path.unlink()
    for path, content in contents.items():
        if not path.exists() or path.read_bytes() != content:
            with whole(path) as file:
                file.write(content)
