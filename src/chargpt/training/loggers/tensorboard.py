"""TensorBoard logger: metrics, samples and the config as text, and the HParams tab."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only

from chargpt.runs.directory import EVENT_FILES

FOLDER_BEFORE_0_3 = "tensorboard"  # the subfolder of the event files in runs of earlier versions

# Second tags of the losses. TensorBoard sorts the charts by their tags, so its first screen shows these two.
FIRST_CHARTS = {"train/loss": "loss/train", "val/loss": "loss/val"}
# The Custom Scalars tab: category -> chart -> its kind and the tags that it shows.
LAYOUT = {"loss": {"train and validation loss": ["Multiline", ["train/loss", "val/loss"]]}}
# The HParams tab shows the columns of five hyperparameters: those that "differ" first, then by name.
FIRST_HPARAMS = ("lr", "model", "n_head", "n_layer")
# It has the columns of the first of the compared runs, which may be of a model without these settings.
SHARED_HPARAMS = ("lr", "n_head", "n_layer", "block_size", "dropout", "n_embd")
HPARAM_METRICS = ("val/loss", "val/bits_per_character", "train/loss")


def event_folder(directory: str | Path) -> Path:
    """The folder of a run's event files: the run directory, by which TensorBoard names the run.

    In the directory of a run of an earlier version, it is the subfolder that this version used.
    """
    earlier = Path(directory, FOLDER_BEFORE_0_3)
    return earlier if any(earlier.glob(EVENT_FILES)) else Path(directory)


class TensorBoard(TensorBoardLogger):
    """Lightning's TensorBoard logger with its event files in the run directory, text, one chart of both losses, and a
    filled HParams tab.

    `open` creates the event file and writes the points logged so far. Lightning accesses the writer before it loads
    a checkpoint, but a run that cannot be resumed must not create an event file.

    Args:
        directory: the run directory.
        purge_step: for a resumed run, the first step that it logs again.
        flush_secs: seconds after which new points are written to disk.
    """

    def __init__(self, directory: str, flush_secs: int = 10, **settings: Any):
        super().__init__(
            str(event_folder(directory)),
            name="",
            version="",
            default_hp_metric=False,
            flush_secs=flush_secs,
            **settings,
        )
        self._writer = _DeferredWriter()

    @rank_zero_only
    def open(self, first_step: int | None = None) -> None:
        """Creates the event file.

        Args:
            first_step: the first step that a resumed run logs again; TensorBoard hides older points from this step on.
        """
        writer = TensorBoardLogger.experiment.fget(self)
        if first_step is None:
            writer.add_custom_scalars(LAYOUT)
        else:
            _mark_restart(writer, first_step)
        self._writer.open(writer)

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """A proxy for torch's `SummaryWriter` that buffers calls until `open`."""
        return self._writer

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        first = {FIRST_CHARTS[tag]: value for tag, value in metrics.items() if tag in FIRST_CHARTS}
        super().log_metrics({**metrics, **first}, step)

    @rank_zero_only
    def save(self) -> None:
        """Flushes the event file. Lightning's implementation would also write an hparams.yaml."""
        self.experiment.flush()

    @rank_zero_only
    def log_text(self, name: str, text: str, step: int) -> None:
        """Logs text verbatim, as a Markdown code block: otherwise TensorBoard would drop its line breaks."""
        indented = "\n".join(f"    {line}" for line in text.splitlines())
        self.experiment.add_text(name, indented, step)

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Adds the run to the HParams tab, with its losses as the metrics to compare."""
        from torch.utils.tensorboard.summary import hparams  # noqa: PLC0415 - tensorboard is slow to import

        experiment, start, _ = hparams(params, dict.fromkeys(HPARAM_METRICS))
        _order_columns(experiment)
        writer = self.experiment.file_writer
        writer.add_summary(experiment)
        writer.add_summary(start)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        self.experiment.flush()
        if status == "success":
            self.experiment.close()


class _DeferredWriter:
    """Buffers method calls until it has a writer, then replays them and forwards later calls."""

    def __init__(self) -> None:
        self._writer: Any = None
        self._calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []

    def open(self, writer: Any) -> None:
        self._writer = writer
        for name, args, kwargs in self._calls:
            getattr(writer, name)(*args, **kwargs)
        self._calls.clear()

    def __getattr__(self, name: str) -> Any:
        if self._writer is not None:
            return getattr(self._writer, name)
        return lambda *args, **kwargs: self._calls.append((name, args, kwargs))


def _order_columns(experiment: Any) -> None:
    """Puts `FIRST_HPARAMS` first in the HParams tab, and adds columns for the `SHARED_HPARAMS` that the run lacks."""
    # tensorboard is slow to import, and protobuf defines the classes of these modules only at run time.
    from tensorboard.plugins.hparams.api_pb2 import (  # noqa: PLC0415
        DATA_TYPE_FLOAT64,  # pyright: ignore[reportAttributeAccessIssue]
    )
    from tensorboard.plugins.hparams.plugin_data_pb2 import (  # noqa: PLC0415
        HParamsPluginData,  # pyright: ignore[reportAttributeAccessIssue]
    )

    plugin = experiment.value[0].metadata.plugin_data
    data = HParamsPluginData.FromString(plugin.content)
    columns = data.experiment.hparam_infos
    present = {info.name for info in columns}
    for name in SHARED_HPARAMS:
        if name not in present:
            columns.add(name=name, type=DATA_TYPE_FLOAT64)
    for info in columns:
        info.differs = info.name in FIRST_HPARAMS
    plugin.content = data.SerializeToString()


def _mark_restart(writer: Any, step: int) -> None:
    """Writes the event that makes TensorBoard hide the points logged before the restart for `step` and later steps.

    The event that `purge_step` writes is not enough: it is the first in its file, and TensorBoard ignores it there.
    """
    # tensorboard is slow to import, and protobuf defines the classes of this module only at run time.
    from tensorboard.compat.proto.event_pb2 import (  # noqa: PLC0415
        Event,  # pyright: ignore[reportAttributeAccessIssue]
        SessionLog,  # pyright: ignore[reportAttributeAccessIssue]
    )

    mark = Event(session_log=SessionLog(status=SessionLog.START))
    writer.file_writer.add_event(mark, step)
