"""Whether two runs are the same in all but their times: weights, optimizers, curves, figures, texts."""

import sys
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.training import reading

COLUMNS = ("step", "train_loss", "val_loss", "lr", "grad_norm")
TIMED = ("_seconds", "_second")  # how the names of figures end that are times, or made of them


def differences(run: Path, other: Path) -> list[str]:
    """Where they differ, in a line each; empty if nowhere."""
    found = []
    for name in ("last", "best"):
        one, two = reading.learned(run, name), reading.learned(other, name)
        found += [f"{name}.ckpt{place}" for place in reading.differences(one, two)]
    pairs = {
        "history.csv": (reading.history(run, *COLUMNS), reading.history(other, *COLUMNS)),
        "metrics.json": (_figures(run), _figures(other)),
        "sample.txt": ((run / "sample.txt").read_text(), (other / "sample.txt").read_text()),
        "tensorboard's scalars": (_scalars(run), _scalars(other)),
        "tensorboard's samples": (_texts(run), _texts(other)),
    }
    found += [name for name, (one, two) in pairs.items() if one != two]
    return found + [
        f"the scalars {tag} are not one a step" for tag, points in _scalars(run).items() if _odd(points)
    ]


def _figures(run: Path) -> dict:
    return {key: value for key, value in reading.metrics(run).items() if not key.endswith(TIMED)}


def _scalars(run: Path) -> dict[str, list[tuple[int, float]]]:
    return {tag: points for tag, points in reading.scalars(run).items() if not tag.endswith(TIMED)}


def _texts(run: Path) -> list[tuple[int, bytes]]:
    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"tensors": 0}).Reload()
    tag = "sample/text_summary"
    return (
        [(e.step, e.tensor_proto.string_val[0]) for e in events.Tensors(tag)]
        if tag in events.Tags()["tensors"]
        else []
    )


def _odd(points: list[tuple[int, float]]) -> bool:
    steps = [step for step, _ in points]
    return steps != sorted(set(steps))
