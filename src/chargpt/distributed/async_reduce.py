"""An asynchronous all-reduce that runs during a training step."""

import os

import torch
import torch.distributed as dist

from chargpt.errors import TrainingError

GLOO, NCCL = "GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"  # the network interface of each backend


class AsyncMaxReduce:
    """The elementwise maximum of a few numbers over all ranks, returned one call later.

    The all-reduce runs on the CPUs in parallel to the training step, so neither the host nor a GPU waits for it. All
    ranks get the same result at the same step and therefore make the same decisions.

    Args:
        world_size: number of ranks; with one, the numbers are returned immediately.
        device: the training device. On a CPU the default process group is used, else an additional gloo group.
    """

    def __init__(self, world_size: int, device: torch.device):
        self._distributed = world_size > 1
        self._group: dist.ProcessGroup | None = None  # the default group
        if self._distributed and device.type != "cpu":
            self._group = _new_gloo_group()
        self._pending: tuple[dist.Work, torch.Tensor] | None = None

    def exchange(self, numbers: list[float]) -> list[float] | None:
        """Sends this rank's numbers. All ranks must call it equally often.

        Returns:
            The maximum over the ranks of the numbers of the previous call; None at the first call.
        """
        if not self._distributed:
            return numbers
        previous = self.finish()
        maximum = torch.tensor(numbers, dtype=torch.float64)
        work = dist.all_reduce(maximum, dist.ReduceOp.MAX, group=self._group, async_op=True)
        assert work is not None  # this rank is in the group
        self._pending = (work, maximum)
        return previous

    def finish(self) -> list[float] | None:
        """Waits for the pending all-reduce. Returns its result."""
        if self._pending is None:
            return None
        work, maximum = self._pending
        self._pending = None
        work.wait()
        return maximum.tolist()


def _new_gloo_group() -> dist.ProcessGroup:
    """A gloo group on the network interface that is set for NCCL, unless one is set for gloo."""
    if os.environ.get(NCCL, "^")[0] not in "^=":  # these characters start a syntax that only NCCL supports
        os.environ.setdefault(GLOO, os.environ[NCCL])
    try:
        group = dist.new_group(backend="gloo")
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise TrainingError(
            f"gloo cannot connect the ranks ({reason}): set {GLOO} to a network interface that connects all nodes, "
            f"for example {GLOO}=eth0"
        ) from error
    assert isinstance(group, dist.ProcessGroup)  # a number only on ranks outside the group
    return group
