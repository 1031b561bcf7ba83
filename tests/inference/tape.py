"""Replaces a CUDA graph on the CPU: records the operations of one call, and repeats them on the same memory."""

from collections.abc import Callable

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Tape(TorchDispatchMode):
    """Records operations and their memory, but no Python code, like a CUDA graph.

    A replay uses the recorded value of a number that Python computed, and of a tensor outside static memory.
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
            new_results = func(*args, **kwargs)
            for old, new in zip(tree_leaves(results), tree_leaves(new_results), strict=True):
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


def record(func: Callable[[], None], reset: Callable[[], None], device: torch.device) -> Callable[[], None]:
    """Replaces `chargpt.inference.cuda_graph.capture`."""
    reset()
    func()
    reset()
    with Tape() as tape:
        func()
    return tape.replay
