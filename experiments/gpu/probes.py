"""Callbacks that the kit adds to runs: +callbacks.NAME._target_=probes.CLASS, with this folder on PYTHONPATH."""

import json
import os
import signal
import traceback
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import lightning as L
import measuring
import torch


class Quit(L.Callback):
    """Exits the process after step `step`, without validation or checkpoint; earlier rows of history.csv are on disk.

    Args:
        counters: a file for the counters of torch.compile.
    """

    def __init__(self, step: int, counters: str | None = None):
        self.step, self.counters = step, counters

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            if self.counters:
                Path(self.counters).write_text(json.dumps(compile_counters()))
            os._exit(0)


def compile_counters() -> dict[str, int]:
    """Graph breaks, skipped CUDA graphs and recompilations in this process; one graph is expected."""
    from torch._dynamo.utils import counters  # noqa: PLC0415 - only compiled runs need torch._dynamo

    graphs = counters["stats"]["unique_graphs"]
    return {
        "graph breaks": sum(counters["graph_break"].values()),
        "CUDA graphs skipped": counters["inductor"]["cudagraph_skips"],
        "recompilations": graphs - 1,
    }


class Noise(L.Callback):
    """Multiplies each gradient element by 1 + `relative` x, x ~ N(0, 1), to imitate the rounding of another device."""

    def __init__(self, relative: float, seed: int = 0):
        self.relative, self.seed = relative, seed

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Any) -> None:
        generator = torch.Generator(pl_module.device).manual_seed(1000 * self.seed + trainer.global_step)
        for p in pl_module.parameters():
            if p.grad is not None:
                noise = torch.randn(p.grad.shape, generator=generator, device=p.device)
                p.grad.mul_(1 + self.relative * noise)


class Signal(L.Callback):
    """Sends this process a signal after step `step`."""

    def __init__(self, step: int, name: str = "SIGTERM"):
        self.step, self.number = step, signal.Signals[name]

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            signal.raise_signal(self.number)


class Fault(L.Callback):
    """If the learning rate is above a limit, sets one at which the weights overflow in step `step`."""

    def __init__(self, step: int, above: float = 0.0, lr: float = 1e30):
        self.step, self.above, self.lr = step, above, lr

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Any) -> None:
        if trainer.global_step + 1 == self.step and optimizer.param_groups[0]["lr"] > self.above:
            for group in optimizer.param_groups:
                group["lr"] = self.lr


class Raise(L.Callback):
    """Raises an error on one rank, at the start of step `step`."""

    def __init__(self, rank: int, step: int):
        self.rank, self.step = rank, step

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_rank == self.rank and batch_idx + 1 == self.step:
            raise RuntimeError("a rank raises")


class Syncs(L.Callback):
    """Counts the synchronizations of CPU and device between log points, by source line.

    On CUDA, torch warns of them (`set_sync_debug_mode`); on a CPU, Tensor methods that read a value are counted.
    """

    READS = ("item", "tolist", "cpu", "numpy", "__bool__", "__int__", "__float__", "__index__")

    def __init__(self, file: str):
        self.file, self.places, self.active, self.steps = Path(file), Counter(), False, 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.cuda = pl_module.device.type == "cuda"
        if self.cuda:
            warnings.filterwarnings("always", message=".*synchronizing CUDA operation.*")
            self.show, warnings.showwarning = warnings.showwarning, self._show_warning
        else:
            for name in self.READS:
                setattr(torch.Tensor, name, self._counting(getattr(torch.Tensor, name)))
        self._watch(True)  # check that a synchronization is counted
        torch.ones(1, device=pl_module.device).item()
        self._watch(False)
        if sum(self.places.values()) != 1:
            raise RuntimeError(f"expected one synchronization, counted {self.places}")
        self.places.clear()

    def _counting(self, method: Any) -> Any:
        def read(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            if self.active and tensor.device.type == "cpu" and not torch.compiler.is_compiling():
                self._note()
            active, self.active = self.active, False  # one of these methods may call another
            try:
                return method(tensor, *args, **kwargs)
            finally:
                self.active = active

        return read

    def _show_warning(self, message: Any, category: Any, *args: Any, **kwargs: Any) -> None:
        if "synchronizing CUDA operation" in str(message):
            self._note()
        else:
            self.show(message, category, *args, **kwargs)

    def _note(self) -> None:
        """Counts the innermost source line outside torch and this file."""
        stack = [f for f in traceback.extract_stack() if f.filename != __file__ and "/torch/" not in f.filename]
        self.places[f"{Path(stack[-1].filename).name}:{stack[-1].lineno}" if stack else "unknown"] += 1

    def _watch(self, on: bool) -> None:
        self.active = on
        if self.cuda:
            torch.cuda.set_sync_debug_mode("warn" if on else "default")

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        # A log point reads the losses since the last one. The first step is one, and allocates memory.
        logs = trainer.global_step == 0 or (trainer.global_step + 1) % trainer.log_every_n_steps == 0
        self.steps += not logs
        self._watch(not logs)

    def on_train_end(self, trainer: L.Trainer, *_: Any) -> None:
        self._watch(False)
        if not self.steps:
            raise RuntimeError("every step was a log point")
        places = [f"{place} x {n}" for place, n in self.places.items()]
        result = {"count": sum(self.places.values()), "places": places, "steps": self.steps}
        self.file.write_text(json.dumps(result))

    def on_exception(self, *_: Any) -> None:
        self._watch(False)


class Turn(L.Callback):
    """Before its first step, waits until all runs of a folder are ready (compiled), then for its turn."""

    def __init__(self, folder: str, name: str, count: int):
        self.folder, self.name, self.count = folder, name, count
        self.turn: Any = None

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self.turn is None:
            self.turn = measuring.take_turn(Path(self.folder), self.name, self.count)

    def on_validation_start(self, trainer: L.Trainer, *_: Any) -> None:
        if self.turn:
            self.turn.close()


class BareLoop(Turn):
    """A hand-written training loop with the run's model, batches and optimizer; writes its time to FOLDER/NAME.json."""

    def __init__(self, folder: str, name: str, count: int, steps: int):
        super().__init__(folder, name, count)
        self.steps = steps

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        optimizer, batches = trainer.optimizers[0], iter(trainer.train_dataloader)
        device = pl_module.device.type
        dtype = torch.bfloat16 if "bf16" in str(trainer.precision) else torch.float32

        def step() -> None:
            inputs_BT, targets_BT = next(batches)
            with torch.autocast(device, dtype, enabled=dtype != torch.float32):
                logits_BTV = pl_module(inputs_BT)
                loss = torch.nn.functional.cross_entropy(logits_BTV.flatten(0, 1), targets_BT.flatten())
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        ms = measuring.milliseconds(step, self.steps, device)
        Path(self.folder, f"{self.name}.json").write_text(json.dumps({"ms": ms}))
        os._exit(0)
