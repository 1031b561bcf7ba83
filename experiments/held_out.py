"""Runs that do not look at the validation split: on the training split alone, whose last tenth is held out.

For the experiments beside it: `sys.path.insert(0, ...)`, `import held_out`. Models this small train faster side by
side with a thread each than one after the other on all cores.
"""

import csv
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from chargpt.config.overrides import quote_value
from chargpt.data.corpus import TinyShakespeare
from chargpt.runs.record import read_finished
from chargpt.utils.atomic_write import atomic_write_text

ROOT = Path(__file__).parent.parent
KEYS = ("final_val_loss", "train_seconds", "parameters")


def words(folder: Path, share: float = 1.0) -> list[str]:
    """The data, as words for train.py: the first `share` of the training split, measured on its last tenth.

    Args:
        folder: where to write the text.
        share: of what is not held out.
    """
    training = TinyShakespeare().read()
    training = training[: int(0.9 * len(training))]
    end = int(0.9 * len(training))
    kept = training[: int(share * end)]
    path = folder / f"training_split_{share:g}.txt"
    folder.mkdir(exist_ok=True, parents=True)
    atomic_write_text(path, kept + training[end:])
    fraction = (len(kept) + 0.5) / (len(kept) + len(training) - end)  # cut off, it is len(kept) characters
    return ["data=text_file", f"data.path={path}", f"data.train_fraction={fraction!r}"]


def side_by_side(run: Callable[..., dict], wanted: Iterable[tuple[Any, ...]], jobs: int) -> Iterator[dict]:
    """`run(*one)` of each that is wanted, so many at once; in order."""
    with ThreadPoolExecutor(jobs) as pool:
        yield from pool.map(lambda one: run(*one), wanted)


def train(folder: Path, settings: list[str]) -> dict[str, float]:
    """The metrics of the run in a folder, begun or gone on with if it is not finished; on one thread."""
    command = [sys.executable, str(ROOT / "train.py"), "trainer=cpu", "callbacks.samples.max_new_tokens=0"]
    place = ["resume=auto", f"hydra.run.dir={quote_value(str(folder))}"]
    one_thread = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run([*command, *settings, *place], check=True, stdout=subprocess.DEVNULL, env=one_thread)
    return {key: read_finished(folder).metrics[key] for key in KEYS}


def measured(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV that is there already; none if it is not."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))
