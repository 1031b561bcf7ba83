"""Batches of blocks: random blocks for training, and every block of a split once for evaluation."""

import math
from collections.abc import Callable, Iterator

import torch
from jaxtyping import Integer
from torch import Tensor

from chargpt.errors import UserError
from chargpt.utils.seeding import BATCH, generator

IGNORE_INDEX = -100  # the target of padding, which torch's cross-entropy ignores

Batch = tuple[Integer[Tensor, "B T"], Integer[Tensor, "B T"]]


def limit_batches(setting: str, value: int | float | None, total: int) -> int:
    """The number of batches that a limit selects.

    Args:
        setting: its name, for error messages.
        value: a number of batches (int), or a fraction of all batches (float); None for all.
        total: the number of all batches.

    Raises:
        UserError: the value is out of range, or selects no batch.
    """
    if value is None:
        return total
    if value < 0 or (isinstance(value, float) and not value <= 1):
        raise UserError(f"{setting}={value}: it must be a number of batches, or a fraction from 0.0 to 1.0")
    count = math.floor(value * total + 1e-9) if isinstance(value, float) else min(value, total)
    if count == 0:
        raise UserError(f"{setting}={value}: it selects none of {total} batches; set a number, or a larger fraction")
    return count


class RandomBlockLoader:
    """An endless iterator over batches of random blocks: inputs, and targets shifted by one token.

    Global batch k is a pure function of (seed, k). Rank r of W gets blocks r, r + W, r + 2W, ... of it, so that the
    data does not depend on the number of processes.

    Args:
        tokens_N: the split, on the training device.
        block_size: T, tokens of context.
        batch_size: global number of blocks of one forward pass, over all ranks; a multiple of `world_size`.
        seed: the run's seed.
        first: the batch to start with, or a function that returns it, called at the start of each iteration.
        warmup: batches before this one are split into shorter blocks: the first third into eighths, the second into
            quarters, the last into halves, as far as T is divisible (Li et al. 2021, "The Stability-Efficiency
            Dilemma", sequence length warm-up). The tokens are the same.
        repeat: a number N: batch k has the blocks of batch k mod N. None for a new batch each time.
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
        repeat: int | None = None,
    ):
        # A view whose row i contains tokens i .. i + T; only the rows of a batch are copied.
        self._blocks = tokens_N.unfold(0, block_size + 1, 1)
        self._batch_size = batch_size
        self._seed = seed
        self._rank_slice = slice(rank, None, world_size)
        self._first = first if callable(first) else lambda: first
        self._warmup = warmup
        self._repeat = repeat

    def batch(self, k: int) -> Batch:
        random = generator(self._seed, BATCH, k % self._repeat if self._repeat else k)
        starts_B = torch.randint(len(self._blocks), (self._batch_size,), generator=random)
        starts_B = starts_B[self._rank_slice]
        if self._blocks.device.type == "cuda":  # a copy from memory that is not pinned may synchronize the device
            starts_B = starts_B.pin_memory()
        starts_B = starts_B.to(self._blocks.device, non_blocking=True)
        blocks = self._blocks[starts_B].long()
        inputs_BT, targets_BT = blocks[:, :-1], blocks[:, 1:]
        length = self.length(k)
        if length == inputs_BT.shape[1]:
            return inputs_BT, targets_BT
        return inputs_BT.reshape(-1, length), targets_BT.reshape(-1, length)

    def one_batch_per_length(self) -> Iterator[Batch]:
        """One batch of each block length among the remaining batches."""
        first = self._first()
        batch_of_length = {self.length(k): k for k in range(first, max(first, self._warmup) + 1)}
        yield from map(self.batch, batch_of_length.values())

    def length(self, k: int) -> int:
        """The length of the blocks of batch k, in tokens."""
        block_size = self._blocks.shape[1] - 1
        pieces = 8 >> 3 * k // self._warmup if k < self._warmup else 1
        return block_size // math.gcd(block_size, pieces)

    def __iter__(self) -> Iterator[Batch]:
        k = self._first()
        while True:
            yield self.batch(k)
            k += 1


class EvalBlockLoader:
    """A split in non-overlapping blocks: each of its N - 1 predictions counts exactly once.

    All ranks get the same number of batches of the same shape (otherwise DDP would hang); the rest of the last blocks
    is padded, with targets `IGNORE_INDEX`.

    Args:
        tokens_N: the split, N >= 2, on the evaluation device.
        block_size: T, tokens of context.
        batch_size: blocks of one forward pass on one rank.
        max_tokens: the approximate number of predictions of a part of the split, in blocks at equal distances; None for
            the complete split.
    """

    def __init__(
        self,
        tokens_N: Integer[Tensor, " N"],
        block_size: int,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        max_tokens: int | None = None,
    ):
        self._tokens_N = tokens_N
        self._block_size = block_size
        self._all_blocks = -(-(len(tokens_N) - 1) // block_size)
        self._blocks = blocks = self._all_blocks
        if max_tokens is not None:
            self._blocks = blocks = min(self._all_blocks, max(1, max_tokens // block_size))
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
            blocks_B = torch.arange(first, first + self._batch_size, device=device)
            # Block b of a part is block b * all_blocks // blocks of the split. The last batches are padded.
            blocks_B = torch.where(
                blocks_B < self._blocks, blocks_B * self._all_blocks // self._blocks, self._all_blocks
            )
            starts_B = blocks_B * self._block_size
            positions_BT = starts_B[:, None] + offsets_T
            inputs_BT = self._tokens_N[positions_BT.clamp(max=last)].long()
            targets_BT = self._tokens_N[(positions_BT + 1).clamp(max=last)].long()
            yield inputs_BT, targets_BT.masked_fill(positions_BT >= last, IGNORE_INDEX)
