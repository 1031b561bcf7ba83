"""The rendezvous of the ranks: on one machine through a file, and signals while a rank waits for the others.

PyTorch's default, a TCPStore, listens on all network interfaces.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator

import lightning as L
import torch

from chargpt.distributed.env import LOCK_FD_ENV, PARENT_SIGNALS, RENDEZVOUS_FILE_ENV, launched_as_rank
from chargpt.errors import ExitCode
from chargpt.invocation import program_name
from chargpt.training.strategies import TIMEOUT

LOOPBACK = "lo0" if sys.platform == "darwin" else "lo"
# The network interfaces of gloo and NCCL; a value set by the user is kept.
INTERFACES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")


def init_process_group(trainer: L.Trainer) -> None:
    """Initializes the process group before Lightning does, for ranks started by `WorkerGroup` only.

    For ranks started by torchrun or srun, Lightning does it at the start of `fit`; a signal then ends the process.
    """
    if launched_as_rank() and LOCK_FD_ENV not in os.environ:
        set_up = trainer.strategy.setup_environment

        def setup_environment() -> None:
            with exit_on_signal(trainer.world_size):
                set_up()

        trainer.strategy.setup_environment = setup_environment
    if RENDEZVOUS_FILE_ENV not in os.environ or trainer.world_size == 1 or torch.distributed.is_initialized():
        return
    for name in INTERFACES:
        os.environ.setdefault(name, LOOPBACK)
    # Lightning declares it only in the strategies for several processes.
    trainer.strategy.set_world_ranks()  # pyright: ignore[reportAttributeAccessIssue]
    device = trainer.strategy.root_device
    torch.distributed.init_process_group(  # as Lightning does, with another store
        torch.distributed.get_default_backend_for_device(device),
        store=torch.distributed.FileStore(  # pyright: ignore[reportPrivateImportUsage] - documented, but not in __all__
            os.environ[RENDEZVOUS_FILE_ENV], trainer.world_size
        ),
        rank=trainer.global_rank,
        world_size=trainer.world_size,
        timeout=TIMEOUT,
        device_id=device if device.type != "cpu" else None,
    )


def destroy_process_group() -> None:
    """Destroys the process group after a run that was successful on all ranks.

    Not after an error: with NCCL this waits for the other ranks (`chargpt.distributed.env.exit_process`).
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


@contextlib.contextmanager
def exit_on_signal(world_size: int) -> Iterator[None]:
    """In this context, a stop signal ends this process at once.

    While the main thread waits for other ranks in C++ code, Python runs no signal handler. It only writes the number of
    the signal to a pipe, which a thread reads.
    """
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)

    def watch() -> None:
        while number := os.read(read_end, 1)[0]:
            if number in PARENT_SIGNALS:
                sys.stderr.write(f"{program_name()}: interrupted while waiting for {world_size} ranks to start\n")
                os._exit(ExitCode.INTERRUPTED)

    watcher = threading.Thread(target=watch, name="signal watch", daemon=True)
    watcher.start()
    previous = signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(previous)
        os.write(write_end, b"\0")
        watcher.join()
        os.close(read_end)
        os.close(write_end)
