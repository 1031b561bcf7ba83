"""Tokens to batches: random blocks to train on, every block of a split once to measure on."""

import math
from collections.abc import Callable, Iterator

import torch
from jaxtyping import Integer
from torch import Tensor

from chargpt.utils.seeding import BATCH, generator

IGNORE_INDEX = -100  # the target of padding: torch's cross-entropy leaves it out

Batch = tuple[Integer[Tensor, "B T"], Integer[Tensor, "B T"]]


class RandomBlockLoader:
    """Batch k of random blocks, inputs and targets shifted by one; an endless iterator over k.

    Global batch k is a pure function of (seed, k). Rank r of W takes blocks r, r + W, r + 2W, ... of it, so that
    any number of processes trains on the same data, and the members of an ensemble each on theirs.

    Args:
        tokens_N: the split, on the device that trains.
        block_size: T, tokens of context.
        batch_size: global number of blocks of one forward pass, over all ranks; a multiple of `world_size`.
        seed: the run's seed.
        first: the batch to start with; a function says it anew each time that the iteration begins.
        warmup: batches before this one are cut into shorter blocks: a third of them into eighths, a third into
            quarters, a third into halves, as far as these are whole (Li et al. 2021, "The Stability-Efficiency
            Dilemma", sequence length warm-up). The tokens are the same.
    """

    def __init__(
        self,
        tokens_N: Integer[Tensor, " N"],
        block_size: int,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        first: int | Callable[[], int] = 0,
        warmup: int = 0,
    ):
        # A view: row i is tokens i .. i + T. Nothing is copied until a batch is taken.
        self._blocks = tokens_N.unfold(0, block_size + 1, 1)
        self._batch_size = batch_size
        self._seed = seed
        self._mine = slice(rank, None, world_size)
        self._first = first if callable(first) else lambda: first
        self._warmup = warmup

    def batch(self, k: int) -> Batch:
        starts_B = torch.randint(len(self._blocks), (self._batch_size,), generator=generator(self._seed, BATCH, k))
        starts_B = starts_B[self._mine]
        if self._blocks.device.type == "cuda":  # from memory that is not pinned the copy may wait for the device
            starts_B = starts_B.pin_memory()
        starts_B = starts_B.to(self._blocks.device, non_blocking=True)
        blocks = self._blocks[starts_B].long()
        inputs_BT, targets_BT = blocks[:, :-1], blocks[:, 1:]
        length = self.length(k)
        if length == inputs_BT.shape[1]:
            return inputs_BT, targets_BT
        return inputs_BT.reshape(-1, length), targets_BT.reshape(-1, length)

    def layouts(self) -> Iterator[Batch]:
        """A batch of each length that is still to come."""
        first = self._first()
        numbers = {self.length(k): k for k in range(first, max(first, self._warmup) + 1)}
        yield from map(self.batch, numbers.values())

    def length(self, k: int) -> int:
        """Of the blocks of batch k, in tokens."""
        whole = self._blocks.shape[1] - 1
        pieces = 8 >> 3 * k // self._warmup if k < self._warmup else 1
        return whole // math.gcd(whole, pieces)

    def __iter__(self) -> Iterator[Batch]:
        k = self._first()
        while True:
            yield self.batch(k)
            k += 1


class EvalBlockLoader:
    """A whole split in non-overlapping blocks: each of its N - 1 predictions is counted just once.

    All ranks get equally many batches of one shape (uneven ones would hang DDP); what the split does not fill
    is padded, with targets `IGNORE_INDEX`.

    Args:
        tokens_N: the split, N >= 2, on the device that measures.
        block_size: T, tokens of context.
        batch_size: blocks of one forward pass on one rank.
    """

    def __init__(
        self,
        tokens_N: Integer[Tensor, " N"],
        block_size: int,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
    ):
        self._tokens_N = tokens_N
        self._block_size = block_size
        blocks = -(-(len(tokens_N) - 1) // block_size)
        self._batch_size = min(batch_size, -(-blocks // world_size))
        self._rank, self._world_size = rank, world_size
        self._batches = -(-blocks // (self._batch_size * world_size))

    def __len__(self) -> int:
        return self._batches

    def __iter__(self) -> Iterator[Batch]:
        last = len(self._tokens_N) - 1
        device = self._tokens_N.device
        offsets_T = torch.arange(self._block_size, device=device)
        for i in range(self._batches):
            first = (i * self._world_size + self._rank) * self._batch_size
            starts_B = torch.arange(first, first + self._batch_size, device=device) * self._block_size
            positions_BT = starts_B[:, None] + offsets_T
            inputs_BT = self._tokens_N[positions_BT.clamp(max=last)].long()
            targets_BT = self._tokens_N[(positions_BT + 1).clamp(max=last)].long()
            yield inputs_BT, targets_BT.masked_fill(positions_BT >= last, IGNORE_INDEX)
