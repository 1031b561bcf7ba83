"""TensorBoard: the curves for people, samples and the config as text, and the HParams tab."""

from typing import Any

from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.loggers.logger import rank_zero_experiment
from lightning.pytorch.utilities import rank_zero_only


class TensorBoard(TensorBoardLogger):
    """Lightning's logger, in the run's folder `tensorboard/`, with text and a filled HParams tab.

    The file of events is made by `begin`; what is logged before then follows. Lightning asks for it earlier,
    before it loads a checkpoint: a run that cannot be resumed must not get one.

    Args:
        directory: the run directory.
        purge_step: of a resumed run, the first step that it will log again.
        flush_secs: seconds after which new points are on disk for a TensorBoard that watches.
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
    def begin(self, restart: int | None = None) -> None:
        """Makes the file of events.

        Args:
            restart: the first step that a resumed run will log again; TensorBoard hides the points from it on.
        """
        writer = TensorBoardLogger.experiment.fget(self)
        if restart is not None:
            _mark_restart(writer, restart)
        self._writer.begin(writer)

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Lightning's own call: `start_hparams` does its work."""

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """Stands for torch's `SummaryWriter`: keeps the calls until `begin`."""
        return self._writer

    @rank_zero_only
    def save(self) -> None:
        """Flushes what was logged. Lightning's own would write an hparams.yaml beside the events."""
        self.experiment.flush()

    @rank_zero_only
    def log_text(self, name: str, text: str, step: int) -> None:
        """Text as it is, in a fixed-width font: as Markdown, TensorBoard would eat its line breaks."""
        indented = "\n".join(f"    {line}" for line in text.splitlines())
        self.experiment.add_text(name, indented, step)

    @rank_zero_only
    def start_hparams(self, params: dict[str, bool | str | float | int]) -> None:
        """The run's row in the HParams tab, with its validation loss as the metric to compare by."""
        from torch.utils.tensorboard.summary import hparams

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
    """Keeps the calls of methods until there is a writer, makes them then, and hands on all that follow."""

    def __init__(self) -> None:
        self._writer: Any = None
        self._calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []

    def begin(self, writer: Any) -> None:
        self._writer = writer
        for name, args, kwargs in self._calls:
            getattr(writer, name)(*args, **kwargs)
        self._calls.clear()

    def __getattr__(self, name: str) -> Any:
        if self._writer is not None:
            return getattr(self._writer, name)
        return lambda *args, **kwargs: self._calls.append((name, args, kwargs))


def _mark_restart(writer: Any, step: int) -> None:
    """The mark of `purge_step` is the first of its file, which TensorBoard takes for the beginning of a run."""
    from tensorboard.compat.proto.event_pb2 import Event, SessionLog

    mark = Event(session_log=SessionLog(status=SessionLog.START))
    writer.file_writer.add_event(mark, step)
