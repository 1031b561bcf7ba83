"""Readers for the files of a run, independent of the code that writes them."""

import csv
import json
from pathlib import Path
from typing import Any

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def history(run: Path, *columns: str) -> list[dict[str, str]]:
    """The rows of history.csv as strings; only `columns`, if any are given."""
    with (run / "history.csv").open(newline="") as file:
        return [{key: row[key] for key in columns or row} for row in csv.DictReader(file)]


def metrics(run: Path) -> dict[str, Any]:
    return json.loads((run / "metrics.json").read_text())


def status(run: Path) -> dict[str, Any]:
    return json.loads((run / "status.json").read_text())


def provenance(run: Path) -> dict[str, Any]:
    return json.loads((run / "provenance.json").read_text())


def scalars(run: Path) -> dict[str, list[tuple[int, float]]]:
    """The scalars of the event files: (step, value), by tag."""
    events = EventAccumulator(str(run)).Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def event_files(run: Path) -> list[Path]:
    """The event files of TensorBoard."""
    return sorted(run.rglob("events.out.tfevents.*"))


def checkpoint(run: Path, name: str = "last") -> dict[str, Any]:
    return torch.load(run / "checkpoints" / f"{name}.ckpt", weights_only=True)


def training_state(run: Path, name: str = "last") -> dict[str, Any]:
    """The training state: weights, optimizer, schedule, counters."""
    state = checkpoint(run, name)
    keys = ("state_dict", "optimizer_states", "lr_schedulers", "global_step", "loops")
    return {key: state[key] for key in keys}


def differences(one: Any, other: Any, path: str = "") -> list[str]:
    """Describes where two nested structures of plain data and tensors are not bit-identical."""
    if isinstance(one, dict) and isinstance(other, dict):
        different = [f"{path}.{key} is in one only" for key in one.keys() ^ other.keys()]
        return different + [
            d for key in one.keys() & other.keys() for d in differences(one[key], other[key], f"{path}.{key}")
        ]
    if isinstance(one, list | tuple) and isinstance(other, list | tuple) and len(one) == len(other):
        return [d for i in range(len(one)) for d in differences(one[i], other[i], f"{path}[{i}]")]
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        same = one.dtype == other.dtype and one.shape == other.shape and torch.equal(one, other)
    else:
        same = type(one) is type(other) and one == other
    return [] if same else [f"{path}: {one} != {other}"]


def content(run: Path) -> dict[Path, bytes]:
    """The bytes of all files of a run."""
    return {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
