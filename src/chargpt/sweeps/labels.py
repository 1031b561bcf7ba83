"""Labels that tell the rows of a ranking apart: `lecture=head`, or `model=gpt_nano n_layer=2`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from chargpt.runs.identity import in_folder_name
from chargpt.sweeps.formatting import key_text, short_names, short_path
from chargpt.sweeps.ranking import Ranking, Row
from chargpt.sweeps.swept_params import ABSENT


def row_labels(ranking: Ranking) -> list[str]:
    """The label of each row: those of its settings that vary and that its command line sets.

    The label of a row without such a setting is its model. Labels that would be equal contain all settings that vary.
    """
    names = short_names(ranking.keys)

    def text(row: Row, keys: Sequence[str]) -> str:
        return " ".join(f"{names[key]}={key_text(row.values[key])}" for key in keys)

    labels, complete = [], []
    for row in ranking.rows:
        present = [key for key in ranking.keys if row.values.get(key, ABSENT) is not ABSENT]
        typed = [key for key in present if key in row.runs[0].overridden]
        labels.append(text(row, typed or [key for key in present if key == "model"]))
        complete.append(text(row, present))
    return [
        (label if label and labels.count(label) == 1 else full) or row_label(row)
        for label, full, row in zip(labels, complete, ranking.rows, strict=True)
    ]


def row_label(row: Row) -> str:
    """The label of a row by itself: the folder of its run or, of several runs, the settings that they share."""
    run = row.runs[0]
    if len(row.runs) == 1 or not run.config:
        return folder_label(run.path)
    settings: dict[str, Any] = {}
    for override in run.overrides:
        key, _, value = override.lstrip("+").partition("=")
        if key != "seed" and in_folder_name(key.replace("/", ".")):
            settings[key] = value
    if not settings and "model" in run.choices:
        settings = {"model": run.choices["model"]}
    names = short_names(settings)
    return " ".join(f"{names[key]}={value}" for key, value in settings.items()) or folder_label(run.path)


def folder_label(path: Path) -> str:
    """The name of a run directory, with bytes that are not UTF-8 replaced."""
    return short_path(path, path.parent)
