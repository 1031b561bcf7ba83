"""Whether two runs are the same in all but their times: weights, optimizers, curves, figures, texts."""

import sys
from pathlib import Path

# What TensorBoard's own server reads with.
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator

from chargpt.runs.reproduce import TIMING_SUFFIXES, non_timing_metrics

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.training import run_artifacts

COLUMNS = ("step", "train_loss", "val_loss", "lr", "grad_norm")
NO_CURVE = ("config/", "_hparams_/")  # written each time a run goes on

Points = list[tuple[int, bytes]]


def differences(run: Path, other: Path) -> list[str]:
    """Where they differ, in a line each; empty if nowhere."""
    found = []
    for name in ("last", "best"):
        one, two = run_artifacts.learned(run, name), run_artifacts.learned(other, name)
        found += [f"{name}.ckpt{place}" for place in run_artifacts.differences(one, two)]
    pairs = {
        "history.csv": (run_artifacts.history(run, *COLUMNS), run_artifacts.history(other, *COLUMNS)),
        "metrics.json": (
            non_timing_metrics(run_artifacts.metrics(run)),
            non_timing_metrics(run_artifacts.metrics(other)),
        ),
        "sample.txt": ((run / "sample.txt").read_text(), (other / "sample.txt").read_text()),
    }
    found += [name for name, (one, two) in pairs.items() if one != two]
    mine, theirs = _shown(run), _shown(other)
    tags = sorted(mine.keys() | theirs.keys())
    found += [f"TensorBoard's {tag}" for tag in tags if mine.get(tag) != theirs.get(tag)]
    return found + [f"TensorBoard's {tag} is not one a step" for tag, points in mine.items() if _odd(points)]


def _shown(run: Path) -> dict[str, Points]:
    """The curves and samples that TensorBoard shows: step and value, by tag."""
    everything = {"scalars": 0, "text": 0}
    events = EventAccumulator(str(run / "tensorboard"), tensor_size_guidance=everything).Reload()
    tags = [
        tag for tag in events.Tags()["tensors"] if not tag.endswith(TIMING_SUFFIXES) and not tag.startswith(NO_CURVE)
    ]
    return {tag: [(e.step, e.tensor_proto.SerializeToString()) for e in events.Tensors(tag)] for tag in tags}


def _odd(points: Points) -> bool:
    steps = [step for step, _ in points]
    return steps != sorted(set(steps))
