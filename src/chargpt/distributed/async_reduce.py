"""What all ranks have to know of each other at each step, exchanged while the step runs."""

import os

import torch
import torch.distributed as dist

from chargpt.errors import TrainingError

GLOO, NCCL = "GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"  # the network interface that each of them takes


class AsyncMaxReduce:
    """The largest value over all ranks of a few numbers, one call late.

    The all-reduce goes by the CPUs and runs beside the step, so that neither the host nor a GPU waits for it. All
    ranks get the same result at the same step, and so decide alike.

    Args:
        world_size: number of ranks; with one, numbers are returned at once.
        device: that trains. The default process group is used if it is the CPU's, else a gloo group beside it.
    """

    def __init__(self, world_size: int, device: torch.device):
        self._several = world_size > 1
        self._group: dist.ProcessGroup | None = None  # the default one
        if self._several and device.type != "cpu":
            self._group = _new_gloo_group()
        self._pending: tuple[dist.Work, torch.Tensor] | None = None

    def exchange(self, numbers: list[float]) -> list[float] | None:
        """Sends this rank's numbers; called equally often on all ranks.

        Returns:
            The largest of each that the ranks sent in the call before; None at the first call.
        """
        if not self._several:
            return numbers
        agreed = self.finish()
        largest = torch.tensor(numbers, dtype=torch.float64)
        work = dist.all_reduce(largest, dist.ReduceOp.MAX, group=self._group, async_op=True)
        self._pending = (work, largest)
        return agreed

    def finish(self) -> list[float] | None:
        """Waits for what is under way; its result."""
        if self._pending is None:
            return None
        work, largest = self._pending
        self._pending = None
        work.wait()
        return largest.tolist()


def _new_gloo_group() -> dist.ProcessGroup:
    """A group that talks over the interface that NCCL was told, if any was, and gloo was not."""
    if os.environ.get(NCCL, "^")[0] not in "^=":  # a prefix of names; these begin another syntax, of NCCL alone
        os.environ.setdefault(GLOO, os.environ[NCCL])
    try:
        return dist.new_group(backend="gloo")
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise TrainingError(
            f"the ranks cannot reach each other by gloo ({reason}): set {GLOO} to the network interface that all "
            f"nodes share, for example {GLOO}=eth0"
        ) from error
