"""Runs on the training split only, with its last tenth held out, so that the validation split stays unused.

For the experiments in this folder: `sys.path.insert(0, ...)`, `import held_out`. Models this small train faster in
parallel with one thread each than serially on all cores.
"""

import csv
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from chargpt.config.raw_values import quote_value
from chargpt.data.corpus import TinyShakespeare
from chargpt.runs.record import read_finished
from chargpt.utils.atomic_write import atomic_write_text

ROOT = Path(__file__).parent.parent
KEYS = ("final_val_loss", "train_seconds", "parameters")


def data_overrides(folder: Path, share: float = 1.0) -> list[str]:
    """Overrides of train.py for the data: trains on a part of the training split, validates on its last tenth.

    Args:
        folder: where the text is written.
        share: fraction of the part that is not held out.
    """
    training = TinyShakespeare().read()
    training = training[: int(0.9 * len(training))]
    end = int(0.9 * len(training))
    used = training[: int(share * end)]
    path = folder / f"training_split_{share:g}.txt"
    folder.mkdir(exist_ok=True, parents=True)
    atomic_write_text(path, used + training[end:])
    fraction = (len(used) + 0.5) / (len(used) + len(training) - end)  # rounded down, it is len(used) characters
    return ["data=text_file", f"data.path={path}", f"data.train_fraction={fraction!r}"]


def in_parallel(run: Callable[..., dict], arguments: Iterable[tuple[Any, ...]], jobs: int) -> Iterator[dict]:
    """Yields `run(*args)` for each of the arguments in order, with at most `jobs` running at once."""
    with ThreadPoolExecutor(jobs) as pool:
        yield from pool.map(lambda args: run(*args), arguments)


def train(folder: Path, overrides: list[str]) -> dict[str, float]:
    """Starts or resumes the run in a folder unless it is finished, on one thread, and returns its metrics."""
    command = [sys.executable, str(ROOT / "train.py"), "trainer=cpu", "callbacks.samples.max_new_tokens=0"]
    directory = ["resume=auto", f"hydra.run.dir={quote_value(str(folder))}"]
    one_thread = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run([*command, *overrides, *directory], check=True, stdout=subprocess.DEVNULL, env=one_thread)
    return {key: read_finished(folder).metrics[key] for key in KEYS}


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file; none if it does not exist."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))
