"""Runs that do not look at the validation split: on the training split alone, whose last tenth is held out.

For the experiments beside it: `sys.path.insert(0, ...)`, `import held_out`.
"""

import csv
import subprocess
import sys
from pathlib import Path

from chargpt.data.corpus import TinyShakespeare
from chargpt.sweeps.finished import read_run

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
    path.write_text(kept + training[end:])
    fraction = (len(kept) + 0.5) / (len(kept) + len(training) - end)  # cut off, it is len(kept) characters
    return ["data=text_file", f"data.path={path}", f"data.train_fraction={fraction!r}"]


def train(folder: Path, settings: list[str]) -> dict[str, float]:
    """The metrics of the run in a folder, begun or gone on with if it is not finished."""
    command = [sys.executable, str(ROOT / "train.py"), "trainer=cpu", "callbacks.samples.max_new_tokens=0"]
    place = ["resume=auto", f"hydra.run.dir={folder}"]
    subprocess.run([*command, *settings, *place], check=True, stdout=subprocess.DEVNULL)
    return {key: read_run(folder).metrics[key] for key in KEYS}


def measured(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV that is there already; none if it is not."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))
