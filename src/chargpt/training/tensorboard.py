"""TensorBoard: the curves for people, samples and the config as text, and the HParams tab."""

from typing import Any

from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only


class TensorBoard(TensorBoardLogger):
    """Lightning's logger, in the run's folder `tensorboard/`, with text and a filled HParams tab.

    Args:
        directory: the run directory.
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

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Lightning's own call: `start_hparams` does its work."""

    @rank_zero_only
    def save(self) -> None:
        """Flushes; Lightning's would write an hparams.yaml beside the events."""
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
    def rewind(self, step: int) -> None:
        """Has TensorBoard hide the points after `step`, which a resumed run will write again."""
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog

        self._kwargs["purge_step"] = step + 1
        # TensorBoard's own reader takes the first such mark for a run's beginning, and hides nothing.
        mark = Event(session_log=SessionLog(status=SessionLog.START))
        self.experiment.file_writer.add_event(mark, step + 1)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        self.experiment.flush()
        if status == "success":
            self.experiment.close()
