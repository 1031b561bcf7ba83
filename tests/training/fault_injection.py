"""Callbacks for tests: signals, errors and non-finite weights at a given step, a fake clock, and recorders."""

import atexit
import ipaddress
import json
import os
import signal
import time
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_only
from torch._dynamo.utils import counters
from torch.distributed.fsdp import FullyShardedDataParallel

from chargpt.model.kernels.cpu_dtypes import CPUDtypes, set_cpu_dtypes
from chargpt.training import loop
from chargpt.training.callbacks import interrupt
from chargpt.training.callbacks.checkpoint import CheckpointCallback


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


class KillInValidation(L.Callback):
    """Kills its process in the validation at `step`, after the checkpoint before it."""

    def __init__(self, step: int):
        self.step = step
        interrupt.SAVE_BEFORE_VALIDATION_SECONDS = 0

    def on_validation_batch_end(self, trainer, *_) -> None:
        if trainer.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


class SlowCopies(L.Callback):
    """Delays each copy of a checkpoint on rank 0 by `seconds`."""

    def __init__(self, seconds: float):
        copy = CheckpointCallback.copy

        @rank_zero_only
        def delayed(source: Path, target: Path) -> None:
            time.sleep(seconds)
            copy(source, target)

        CheckpointCallback.copy = staticmethod(delayed)


class NaNValidation(L.Callback):
    """Makes the validation loss at `step` NaN."""

    def __init__(self, step: int):
        self.step = step

    def on_validation_batch_end(self, trainer, pl_module, *_) -> None:
        if trainer.global_step == self.step:
            pl_module.val_loss_sum.update(torch.nan)


class FakeClock:
    """Replaces `time.perf_counter`: advances only when `now` is changed."""

    now = 0.0

    @classmethod
    def perf_counter(cls) -> float:
        return cls.now


class Durations(L.Callback):
    """Advances `FakeClock` by `batch` seconds per training batch, and by `validation` seconds per validation batch."""

    def __init__(self, batch: float, validation: float):
        self.batch, self.validation = batch, validation

    def on_train_batch_start(self, *_) -> None:
        FakeClock.now += self.batch

    def on_validation_batch_start(self, *_) -> None:
        FakeClock.now += self.validation


class Fault(L.Callback):
    """Sets the learning rate of one step to `lr` if it is above `above`; with the default, the weights overflow."""

    def __init__(self, step: int, lr: float = 1e30, above: float = 0.0):
        self.step, self.lr, self.above = step, lr, above

    def on_before_optimizer_step(self, trainer, pl_module, optimizer) -> None:
        if trainer.global_step + 1 == self.step and optimizer.param_groups[0]["lr"] > self.above:
            for group in optimizer.param_groups:
                group["lr"] = self.lr


class RaiseAfterStep(L.Callback):
    """Raises an exception after a step."""

    def __init__(self, step: int):
        self.step = step

    def on_train_batch_end(self, trainer, *_) -> None:
        if trainer.global_step == self.step:
            raise RuntimeError("a part is broken")


class CountReads(L.Callback):
    """Writes to a file how often Python reads a tensor's value between the starts of consecutive steps."""

    READS = ("item", "cpu", "tolist", "numpy", "__bool__", "__float__", "__int__")

    def __init__(self, file: str):
        self.file, self.counts, self.originals = Path(file), [], {}

    def on_train_start(self, trainer, pl_module) -> None:
        for name in self.READS:
            self.originals[name] = getattr(torch.Tensor, name)
            setattr(torch.Tensor, name, self._counted(self.originals[name]))

    def _counted(self, read):
        def counted(*args, **settings):
            if self.counts:
                self.counts[-1] += 1
            return read(*args, **settings)

        return counted

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        self.counts.append(0)

    def on_train_end(self, trainer, pl_module) -> None:
        for name, read in self.originals.items():
            setattr(torch.Tensor, name, read)
        self.file.write_text("\n".join(map(str, self.counts)))


class CountUnits(L.Callback):
    """Writes to the run directory the number of FSDP units of the model."""

    def on_train_end(self, trainer, pl_module) -> None:
        if trainer.is_global_zero:
            units = sum(isinstance(module, FullyShardedDataParallel) for module in trainer.model.modules())
            (Path(trainer.default_root_dir) / "units.txt").write_text(str(units))


class CountCompiled(L.Callback):
    """Writes to the run directory the number of graphs that torch.compile has compiled."""

    def on_train_end(self, trainer, pl_module) -> None:
        (Path(trainer.default_root_dir) / "compiled.txt").write_text(str(counters["stats"]["unique_graphs"]))


class RecordProcessGroupExit(L.Callback):
    """Writes to the run directory which ranks have destroyed the process group."""

    def setup(self, trainer, pl_module, stage) -> None:
        file, destroy = Path(trainer.default_root_dir) / f"left_{trainer.global_rank}", loop.destroy_process_group

        def record_and_destroy() -> None:
            file.touch()
            destroy()

        loop.destroy_process_group = record_and_destroy


class FailRank(L.Callback):
    """Fails one rank during step `step` if `value == where`: by an exception (`raise`, `hang`) or by a signal.

    After `hang`, the interpreter's cleanup does not terminate, as may happen with NCCL.
    """

    def __init__(self, rank: int, step: int, how: str, value: object = 1, where: object = 1):
        self.rank, self.step, self.how, self.enabled = rank, step, how, value == where

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        if self.enabled and trainer.global_rank == self.rank and batch_idx == self.step:
            if self.how == "hang":
                atexit.register(time.sleep, 1000)
            if self.how in ("raise", "hang"):
                raise RuntimeError("a rank is broken")
            os.kill(os.getpid(), signal.Signals[self.how])


class OtherCPUDtypes(L.Callback):
    """Lets one rank choose float32 for all operations, before the ranks agree on the types."""

    def __init__(self, rank: int):
        self.rank = rank

    def setup(self, trainer, pl_module, stage) -> None:
        if trainer.global_rank == self.rank:
            set_cpu_dtypes(CPUDtypes())


class RecordDevices(L.Callback):
    """Writes to a file of its process which devices a job was assigned, and when it started and ended."""

    def __init__(self, folder: str):
        self.folder = Path(folder)
        self.start = Path(f"/proc/{os.getpid()}").stat().st_ctime  # of the process

    def on_fit_end(self, trainer, pl_module) -> None:
        record = {"devices": os.environ.get("CUDA_VISIBLE_DEVICES", ""), "threads": os.environ["OMP_NUM_THREADS"]}
        record["compile_threads"] = os.environ["TORCHINDUCTOR_COMPILE_THREADS"]
        record |= {"start": self.start, "end": time.time()}
        (self.folder / f"{os.getpid()}.json").write_text(json.dumps(record))


class RecordListeningSockets(L.Callback):
    """Writes to a file the addresses on which its process listens for TCP connections (Linux)."""

    def __init__(self, folder: str):
        self.folder = Path(folder)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        if batch_idx == 1:
            descriptors = {str(link.readlink()) for link in Path("/proc/self/fd").iterdir() if link.is_symlink()}
            addresses = []
            for table in ("tcp", "tcp6"):
                for line in Path(f"/proc/self/net/{table}").read_text().splitlines()[1:]:
                    _, local, _, state, *_, inode = line.split()[:10]
                    if state == "0A" and f"socket:[{inode}]" in descriptors:
                        packed = bytes.fromhex(local.split(":")[0])
                        words = [packed[i : i + 4][::-1] for i in range(0, len(packed), 4)]
                        addresses.append(str(ipaddress.ip_address(b"".join(words))))
            (self.folder / f"listening_{trainer.global_rank}.txt").write_text("\n".join(addresses))
