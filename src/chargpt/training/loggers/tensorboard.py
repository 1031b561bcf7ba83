"""TensorBoard logger: metrics, samples and the config as text, and the HParams tab."""

from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only


class TensorBoard(TensorBoardLogger):
    """Lightning's TensorBoard logger in the run's directory `tensorboard/`, with text and a filled HParams tab.

    `open` creates the event file and writes the points logged so far. Lightning accesses the writer before it loads
    a checkpoint, but a run that cannot be resumed must not create an event file.

    Args:
        directory: the run directory.
        purge_step: for a resumed run, the first step that it logs again.
        flush_secs: seconds after which new points are written to disk.
    """

    def __init__(self, directory: str, flush_secs: int = 10, **settings: Any):
        super().__init__(
            directory,
            name="tensorboard",
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
        if first_step is not None:
            _mark_restart(writer, first_step)
        self._writer.open(writer)

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """A proxy for torch's `SummaryWriter` that buffers calls until `open`."""
        return self._writer

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

        metrics = dict.fromkeys(("val/loss", "val/bits_per_character", "train/loss"))
        experiment, start, _ = hparams(params, metrics)
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
