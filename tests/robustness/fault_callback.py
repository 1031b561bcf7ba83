"""A callback that sends a signal to its own process at a given place in a given training step."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import lightning as L
import torch

from chargpt.training.loggers.csv_history import CSVHistory

IN_A_STEP = ("forward", "backward", "optimizer")
IN_A_CHECKPOINT = ("writing", "written", "renamed")
AT_A_VALIDATION = ("validation", "history", *IN_A_CHECKPOINT)
AT_THE_END = "end"


class FaultCallback(L.Callback):
    """Sends one signal and logs where the process was.

    Args:
        place: `forward`, `backward`: in the middle of the network, in the last micro-batch of the step; `optimizer`:
            after the weights are updated, before the step is counted; `validation`: before the second validation
            batch; `history`: after half a row of `history.csv` is written; `writing`: while the checkpoint is being
            written; `written`: after it is written to a temporary file, before the file is renamed; `renamed`: after
            the renaming; `end`: after the last step, before `metrics.json` is written.
        step: the optimizer step in progress, or the last one before the validation.
        signal_name: name of the signal, such as `SIGTERM`.
        rank: global rank of the process that receives the signal.
        log_file: file to which a JSON line is appended when the signal is sent.
    """

    def __init__(self, place: str, step: int, signal_name: str, log_file: str, rank: int = 0):
        self._place, self._step, self._rank, self._log_file = place, step, rank, Path(log_file)
        self._signal = signal.Signals[signal_name]
        self._micro_batch = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._trainer = trainer
        if trainer.global_rank != self._rank:
            return
        parameters = list(pl_module.parameters())
        layers = [module for module in pl_module.modules() if isinstance(module, torch.nn.Linear)]
        install = {
            "forward": lambda: layers[len(layers) // 2].register_forward_hook(self._in_step),
            "backward": lambda: parameters[len(parameters) // 2].register_hook(self._in_step),
            "optimizer": lambda: trainer.optimizers[0].register_step_post_hook(self._in_step),
            "history": self._patch_history,
            "writing": self._patch_torch_save,
            "written": self._patch_fsync,
            "renamed": self._patch_replace,
        }
        if self._place in install:
            install[self._place]()

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self._micro_batch = batch_idx % trainer.accumulate_grad_batches

    def on_validation_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int, *_) -> None:
        if self._place == "validation" and batch_idx == 1 and trainer.global_rank == self._rank:
            self._at_validation("second batch")

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._place == AT_THE_END and trainer.global_rank == self._rank:
            self.send("after the last step")

    def _in_step(self, *_: Any) -> None:
        trainer = self._trainer
        last = self._micro_batch == trainer.accumulate_grad_batches - 1
        if trainer.training and trainer.global_step + 1 == self._step and last:
            self.send(f"micro-batch {self._micro_batch + 1}")

    def _at_validation(self, detail: str) -> None:
        if self._trainer.global_step == self._step:
            self.send(detail)

    def send(self, detail: str) -> None:
        """Sends the signal, at the first call only."""
        if not self._place:
            return
        record = {"place": self._place, "step": self._step, "rank": self._rank, "detail": detail}
        self._place = ""
        with self._log_file.open("a") as file:
            file.write(json.dumps(record) + "\n")
        os.kill(os.getpid(), self._signal)

    def _patch_fsync(self) -> None:
        original = os.fsync

        def fsync(descriptor: int) -> None:
            self._at_validation("before fsync")
            original(descriptor)

        os.fsync = fsync

    def _patch_replace(self) -> None:
        original = Path.replace

        def replace(path: Path, target: Path) -> Path:
            result = original(path, target)
            if Path(target).name == "last.ckpt":
                self._at_validation("last.ckpt is new, best.ckpt is not")
            return result

        Path.replace = replace

    def _patch_torch_save(self) -> None:
        original = torch.save

        def save(content: Any, file: Any) -> None:
            original(content, _InterruptedFile(file, self) if self._trainer.global_step == self._step else file)

        torch.save = save

    def _patch_history(self) -> None:
        original = CSVHistory.save

        def save(history: CSVHistory) -> None:
            if history._row and self._trainer.global_step == self._step:
                with history._path.open("a") as file:
                    file.write(f"{self._step},3.1")
                self.send("half a row")
                history.rewind(self._step - 1)  # a process that continues after the signal writes the row again
            original(history)

        CSVHistory.save = save


class _InterruptedFile:
    """A file object that sends the signal in the middle of what is written to it."""

    def __init__(self, file: Any, callback: FaultCallback):
        self._file, self._callback, self._written = file, callback, 0

    def write(self, data: Any) -> int:
        self._written += len(data)
        if self._written > 100_000:
            self._callback.send(f"after {self._written:,} bytes")
        return self._file.write(data)

    def flush(self) -> None:
        self._file.flush()
