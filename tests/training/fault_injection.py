"""Callbacks that stage what a run has to live through: a signal at a chosen moment, a clock that we move."""

import atexit
import ipaddress
import json
import os
import signal
import time
from pathlib import Path

import lightning as L
import torch
from torch.distributed.fsdp import FullyShardedDataParallel


class SignalAt(L.Callback):
    """Sends its process `times` signals, after `batch` forward passes or as the validation at `step` starts."""

    def __init__(self, name: str, batch: int | None = None, step: int | None = None, times: int = 1):
        self.number, self.batch, self.step, self.times = signal.Signals[name], batch, step, times

    def _send(self) -> None:
        for _ in range(self.times):
            signal.raise_signal(self.number)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        if batch_idx + 1 == self.batch:
            self._send()

    def on_validation_start(self, trainer, pl_module) -> None:
        if trainer.global_step == self.step:
            self._send()


class Clock:
    """In place of the module `time`: stands still until it is moved."""

    now = 0.0

    @classmethod
    def perf_counter(cls) -> float:
        return cls.now


class Durations(L.Callback):
    """A forward and backward pass takes `batch` seconds of `Clock`, a validation `validation` seconds."""

    def __init__(self, batch: float, validation: float):
        self.batch, self.validation = batch, validation

    def on_train_batch_start(self, *_) -> None:
        Clock.now += self.batch

    def on_validation_batch_start(self, *_) -> None:
        Clock.now += self.validation


class Fault(L.Callback):
    """Raises the learning rate of one step, where it is above a limit: by default beyond what a model survives."""

    def __init__(self, step: int, lr: float = 1e30, above: float = 0.0):
        self.step, self.lr, self.above = step, lr, above

    def on_before_optimizer_step(self, trainer, pl_module, optimizer) -> None:
        if trainer.global_step + 1 == self.step and optimizer.param_groups[0]["lr"] > self.above:
            for group in optimizer.param_groups:
                group["lr"] = self.lr


class Break(L.Callback):
    """Breaks after a step."""

    def __init__(self, step: int):
        self.step = step

    def on_train_batch_end(self, trainer, *_) -> None:
        if trainer.global_step == self.step:
            raise RuntimeError("a part is broken")


class CountReads(L.Callback):
    """Writes down for each step how often Python read a tensor's value, from one step's start to the next."""

    READS = ("item", "cpu", "tolist", "numpy", "__bool__", "__float__", "__int__")

    def __init__(self, file: str):
        self.file, self.counts, self.before = Path(file), [], {}

    def on_train_start(self, trainer, pl_module) -> None:
        for name in self.READS:
            self.before[name] = getattr(torch.Tensor, name)
            setattr(torch.Tensor, name, self._counted(self.before[name]))

    def _counted(self, read):
        def counted(*args, **settings):
            if self.counts:
                self.counts[-1] += 1
            return read(*args, **settings)

        return counted

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        self.counts.append(0)

    def on_train_end(self, trainer, pl_module) -> None:
        for name, read in self.before.items():
            setattr(torch.Tensor, name, read)
        self.file.write_text("\n".join(map(str, self.counts)))


class CountUnits(L.Callback):
    """Writes down, in the run directory, how many units FSDP has made of the model."""

    def on_train_end(self, trainer, pl_module) -> None:
        if trainer.is_global_zero:
            units = sum(isinstance(module, FullyShardedDataParallel) for module in trainer.model.modules())
            (Path(trainer.default_root_dir) / "units.txt").write_text(str(units))


class CountCompiled(L.Callback):
    """Writes down, in the run directory, how many graphs torch.compile has made by the end of training."""

    def on_train_end(self, trainer, pl_module) -> None:
        from torch._dynamo.utils import counters

        (Path(trainer.default_root_dir) / "compiled.txt").write_text(str(counters["stats"]["unique_graphs"]))


class WatchGroup(L.Callback):
    """Writes down, in the run directory, which ranks have destroyed the process group."""

    def setup(self, trainer, pl_module, stage) -> None:
        from chargpt.training import loop

        file, destroy = Path(trainer.default_root_dir) / f"left_{trainer.global_rank}", loop.destroy_process_group

        def noted() -> None:
            file.touch()
            destroy()

        loop.destroy_process_group = noted


class DieInRank(L.Callback):
    """Ends one rank in the middle of step `step`, where a setting has a value: by an error, or by a signal.

    `hang` is an error after which the interpreter's clean-up never ends, as NCCL's may not.
    """

    def __init__(self, rank: int, step: int, how: str, value: object = 1, where: object = 1):
        self.rank, self.step, self.how, self.here = rank, step, how, value == where

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        if self.here and trainer.global_rank == self.rank and batch_idx == self.step:
            if self.how == "hang":
                atexit.register(time.sleep, 1000)
            if self.how in ("raise", "hang"):
                raise RuntimeError("a rank is broken")
            os.kill(os.getpid(), signal.Signals[self.how])


class Witness(L.Callback):
    """Writes down, in a file of its own, which device a job was given and from when to when it had it."""

    def __init__(self, folder: str):
        self.folder = Path(folder)

        self.start = Path(f"/proc/{os.getpid()}").stat().st_ctime  # of the whole process

    def on_fit_end(self, trainer, pl_module) -> None:
        seen = {"devices": os.environ.get("CUDA_VISIBLE_DEVICES", ""), "threads": os.environ["OMP_NUM_THREADS"]}
        seen["compile_threads"] = os.environ["TORCHINDUCTOR_COMPILE_THREADS"]
        seen |= {"start": self.start, "end": time.time()}
        (self.folder / f"{os.getpid()}.json").write_text(json.dumps(seen))


class RecordListeningSockets(L.Callback):
    """Writes down on which addresses its process listens for TCP connections, while it trains (Linux)."""

    def __init__(self, folder: str):
        self.folder = Path(folder)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        if batch_idx == 1:
            mine = {str(link.readlink()) for link in Path("/proc/self/fd").iterdir() if link.is_symlink()}
            heard = []
            for table in ("tcp", "tcp6"):
                for line in Path(f"/proc/self/net/{table}").read_text().splitlines()[1:]:
                    _, local, _, state, *_, inode = line.split()[:10]
                    if state == "0A" and f"socket:[{inode}]" in mine:
                        packed = bytes.fromhex(local.split(":")[0])
                        words = [packed[i : i + 4][::-1] for i in range(0, len(packed), 4)]
                        heard.append(str(ipaddress.ip_address(b"".join(words))))
            (self.folder / f"ears_{trainer.global_rank}.txt").write_text("\n".join(heard))
