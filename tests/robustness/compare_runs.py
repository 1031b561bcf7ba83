"""Compares two runs in everything but timings: weights, optimizer, training curves, metrics, samples."""

from pathlib import Path

# The reader of TensorBoard's own server.
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator

from chargpt.runs.reproduce import TIMING_SUFFIXES, non_timing_metrics
from chargpt.training.loggers.tensorboard import event_folder
from tests.training import run_artifacts

COLUMNS = ("step", "train_loss", "val_loss", "lr", "grad_norm")
PER_PROCESS_TAGS = ("config/", "_hparams_/")  # written again each time a run is resumed

Points = list[tuple[int, bytes]]


def differences(run: Path, other: Path) -> list[str]:
    """Describes each difference in one line."""
    result = []
    for name in ("last", "best"):
        states = [run_artifacts.training_state(each, name) for each in (run, other)]
        result += [f"{name}.ckpt{difference}" for difference in run_artifacts.differences(*states)]
    pairs = {
        "history.csv": [run_artifacts.history(each, *COLUMNS) for each in (run, other)],
        "metrics.json": [non_timing_metrics(run_artifacts.metrics(each)) for each in (run, other)],
        "sample.txt": [(each / "sample.txt").read_text() for each in (run, other)],
    }
    result += [name for name, (one, two) in pairs.items() if one != two]
    points, other_points = _tensorboard_points(run), _tensorboard_points(other)
    tags = sorted(points.keys() | other_points.keys())
    result += [f"TensorBoard: {tag}" for tag in tags if points.get(tag) != other_points.get(tag)]
    for tag in points:
        steps = [step for step, _ in points[tag]]
        if steps != sorted(set(steps)):
            result.append(f"TensorBoard: {tag} has several points per step")
    return result


def _tensorboard_points(run: Path) -> dict[str, Points]:
    """The scalars and texts that TensorBoard shows: (step, serialized value) by tag."""
    no_limit = {"scalars": 0, "text": 0}
    events = EventAccumulator(str(event_folder(run)), tensor_size_guidance=no_limit).Reload()
    tags = [
        tag
        for tag in events.Tags()["tensors"]
        if not tag.endswith(TIMING_SUFFIXES) and not tag.startswith(PER_PROCESS_TAGS)
    ]
    return {tag: [(e.step, e.tensor_proto.SerializeToString()) for e in events.Tensors(tag)] for tag in tags}
