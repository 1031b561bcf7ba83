"""Rendezvous of the ranks on one machine through a file, without an open port.

PyTorch's default, a TCPStore, listens on all network interfaces.
"""

import os
import sys

import lightning as L
import torch

from chargpt.distributed.env import RENDEZVOUS_FILE_ENV
from chargpt.training.strategies import TIMEOUT

LOOPBACK = "lo0" if sys.platform == "darwin" else "lo"
# The network interfaces of gloo and NCCL; a value set by the user is kept.
INTERFACES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")


def init_process_group(trainer: L.Trainer) -> None:
    """Initializes the process group before Lightning does, for ranks started by `WorkerGroup` only."""
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
