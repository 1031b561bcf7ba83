"""A CUDA graph's stand-in for the CPU: the operations of one run, repeated on the same memory."""

from collections.abc import Callable

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Tape(TorchDispatchMode):
    """Like a CUDA graph it knows operations and memory, and nothing of the Python that called them.

    A number that Python computed is repeated as it was, and so is a tensor that did not come from static memory.
    """

    def __init__(self):
        super().__init__()
        self._operations = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        results = func(*args, **(kwargs or {}))
        self._operations.append((func, args, kwargs or {}, results))
        return results

    @torch.no_grad()
    def replay(self) -> None:
        for func, args, kwargs, results in self._operations:
            again = func(*args, **kwargs)
            for old, new in zip(tree_leaves(results), tree_leaves(again), strict=True):
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


def record(run: Callable[[], None], reset: Callable[[], None], device: torch.device) -> Callable[[], None]:
    """Takes the place of `chargpt.inference.cuda_graph.capture`."""
    reset()
    run()
    reset()
    with Tape() as tape:
        run()
    return tape.replay
