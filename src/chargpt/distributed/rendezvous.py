"""How the ranks that we have started on one machine find each other: by a file, and not by a port that others see.

torch's own meeting place, a TCPStore, listens on every network of the machine.
"""

import os
import sys

import lightning as L
import torch

from chargpt.distributed.env import RENDEZVOUS_FILE_ENV
from chargpt.training.strategies import TIMEOUT

LOOPBACK = "lo0" if sys.platform == "darwin" else "lo"
# What gloo and NCCL talk over; somebody who has set it knows better.
INTERFACES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")


def init_process_group(trainer: L.Trainer) -> None:
    """Meets the other ranks, before Lightning would do it; where others have started them, it is Lightning's."""
    if RENDEZVOUS_FILE_ENV not in os.environ or trainer.world_size == 1 or torch.distributed.is_initialized():
        return
    for name in INTERFACES:
        os.environ.setdefault(name, LOOPBACK)
    trainer.strategy.set_world_ranks()
    device = trainer.strategy.root_device
    torch.distributed.init_process_group(  # as Lightning would, but for the store
        torch.distributed.get_default_backend_for_device(device),
        store=torch.distributed.FileStore(os.environ[RENDEZVOUS_FILE_ENV], trainer.world_size),
        rank=trainer.global_rank,
        world_size=trainer.world_size,
        timeout=TIMEOUT,
        device_id=device if device.type != "cpu" else None,
    )


def destroy_process_group() -> None:
    """Destroys the process group of a run that has ended well on all ranks.

    After an error it stays: under NCCL its end waits for the other ranks (`chargpt.distributed.env.exit_process`).
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
