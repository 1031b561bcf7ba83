"""A callback that has a signal hit its own process at a chosen place of a chosen step."""

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


class Cut(L.Callback):
    """Sends the signal once, and writes down where it was.

    Args:
        place: `forward`, `backward`: in the middle of the network, in the step's last pass; `optimizer`: the
            weights are changed, and nobody has counted the step; `validation`: before its second batch; `history`:
            half a row is written; `writing`: a part of the checkpoint is; `written`: all of it, in a file that has
            not its name yet; `renamed`: it has; `end`: after the last step, before the figures.
        step: the step that is being taken, or that was taken before the validation.
        name: of the signal.
        rank: which process.
        log: where a line goes that says what happened.
    """

    def __init__(self, place: str, step: int, name: str, log: str, rank: int = 0):
        self._place, self._step, self._rank, self._log = place, step, rank, Path(log)
        self._signal = signal.Signals[name]
        self._pass = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._trainer = trainer
        if trainer.global_rank != self._rank:
            return
        parameters = list(pl_module.parameters())
        layers = [module for module in pl_module.modules() if isinstance(module, torch.nn.Linear)]
        arm = {
            "forward": lambda: layers[len(layers) // 2].register_forward_hook(self._in_step),
            "backward": lambda: parameters[len(parameters) // 2].register_hook(self._in_step),
            "optimizer": lambda: trainer.optimizers[0].register_step_post_hook(self._in_step),
            "history": self._cut_history,
            "writing": self._cut_writing,
            "written": lambda: self._before(os, "fsync"),
            "renamed": self._cut_after_renaming,
        }
        if self._place in arm:
            arm[self._place]()

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self._pass = batch_idx % trainer.accumulate_grad_batches

    def on_validation_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int, *_) -> None:
        if self._place == "validation" and batch_idx == 1 and trainer.global_rank == self._rank:
            self._at_validation("second batch")

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._place == AT_THE_END and trainer.global_rank == self._rank:
            self._now("after the last step")

    def _in_step(self, *_: Any) -> None:
        trainer = self._trainer
        last = self._pass == trainer.accumulate_grad_batches - 1
        if trainer.training and trainer.global_step + 1 == self._step and last:
            self._now(f"pass {self._pass + 1}")

    def _at_validation(self, detail: str) -> None:
        if self._trainer.global_step == self._step:
            self._now(detail)

    def _now(self, detail: str) -> None:
        if not self._place:
            return
        where = {"place": self._place, "step": self._step, "rank": self._rank, "detail": detail}
        self._place = ""  # once
        with self._log.open("a") as file:
            file.write(json.dumps(where) + "\n")
        os.kill(os.getpid(), self._signal)

    def _before(self, owner: Any, name: str) -> None:
        real = getattr(owner, name)

        def replaced(*args: Any, **kwargs: Any) -> Any:
            self._at_validation(f"before {name}")
            return real(*args, **kwargs)

        setattr(owner, name, replaced)

    def _cut_after_renaming(self) -> None:
        real = Path.replace

        def replace(path: Path, target: Path) -> Path:
            result = real(path, target)
            if Path(target).name == "last.ckpt":
                self._at_validation("last.ckpt is new, best.ckpt is not")
            return result

        Path.replace = replace

    def _cut_writing(self) -> None:
        real = torch.save

        def save(content: Any, file: Any) -> None:
            real(content, _Halfway(file, self) if self._trainer.global_step == self._step else file)

        torch.save = save

    def _cut_history(self) -> None:
        real = CSVHistory.save

        def save(history: CSVHistory) -> None:
            if history._row and self._trainer.global_step == self._step:
                with history._path.open("a") as file:
                    file.write(f"{self._step},3.1")
                self._now("half a row")
                history.rewind(self._step - 1)  # it has survived: as if nothing had been written
            real(history)

        CSVHistory.save = save


class _Halfway:
    """A file that has the cut happen in the middle of what is written to it."""

    def __init__(self, file: Any, cut: Cut):
        self._file, self._cut, self._written = file, cut, 0

    def write(self, data: Any) -> int:
        self._written += len(data)
        if self._written > 100_000:
            self._cut._now(f"after {self._written:,} bytes")
        return self._file.write(data)

    def flush(self) -> None:
        self._file.flush()
