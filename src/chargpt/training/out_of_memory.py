"""Out-of-memory errors: estimates the memory of a step and suggests equivalent settings that need less."""

import contextlib
import math
import re
from collections.abc import Callable

import torch
from torch import Tensor

from chargpt.errors import UserError
from chargpt.training.lightning_module import LanguageModeling
from chargpt.utils.memory import available_memory

PARAMETER_BYTES = 16  # float32: the weight, its gradient, and two averages of an optimizer such as AdamW
SMALL_BATCH_TOKENS = 4096  # tokens; the activations of a smaller forward pass are not measured
# The sizes in the error message of torch's CUDA allocator.
TRIED_PATTERN, CAPACITY_PATTERN = r"Tried to allocate ([\d.]+ \w+)", r"total capacity of ([\d.]+ \w+)"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error reports a lack of memory; torch has an exception type for it on GPUs only."""
    messages = ("can't allocate memory", "not enough memory", "out of memory")
    matches = isinstance(error, RuntimeError) and any(message in str(error) for message in messages)
    return matches or isinstance(error, MemoryError | torch.OutOfMemoryError)


def check(module: LanguageModeling, batch_size: int, block_size: int, processes: int, passes: int) -> None:
    """Checks the memory before training on a CPU, because the kernel kills a process that uses too much.

    Raises:
        UserError: the first step would need more memory than is available.
    """
    parameters = PARAMETER_BYTES * sum(p.numel() for p in module.parameters())
    small = batch_size * block_size <= SMALL_BATCH_TOKENS
    needed = parameters if small else estimate(module, batch_size // processes, block_size)
    if (available := available_memory()) < needed * processes:
        message = describe(module, batch_size, block_size, processes, passes, available)
        raise UserError(f"{message}. This machine has {available / 2**30:,.1f} GiB available")


def describe(
    module: LanguageModeling, batch_size: int, block_size: int, devices: int, passes: int, available: float = math.inf
) -> str:
    """The error message: what does not fit into memory, and which settings to try.

    Args:
        batch_size: blocks of one forward pass over all devices.
        passes: forward passes per step.
        available: the memory of the machine, in bytes, in which the suggested settings must fit.
    """
    needed = estimate(module, batch_size // devices, block_size)
    usage = f", which need about {needed / 2**30:,.1f} GiB on each device" if needed else ""

    smallest = module.model.batch_multiple
    fixed = estimate(module, 0, block_size)
    activations = estimate(module, smallest, block_size) - fixed  # of the smallest batch

    def fits(blocks: int) -> bool:
        return fixed * devices + activations * blocks / smallest <= available

    return _message(usage, module.model.batch_multiple, batch_size, block_size, devices, passes, fits)


def describe_gpu(
    error: BaseException,
    device: torch.device,
    multiple: int,
    batch_size: int,
    block_size: int,
    devices: int,
    passes: int,
) -> str:
    """The message of `describe` for a GPU, from the peak of the allocator and the sizes in its error message.

    Args:
        device: the training device; the module may have been moved off it already.
        multiple: the model's `batch_multiple`.
    """
    peak = torch.cuda.max_memory_allocated(device)
    usage = f". The GPU had allocated {peak / 2**30:,.1f} GiB"
    if capacity := re.search(CAPACITY_PATTERN, str(error)):
        usage += f" of {capacity.group(1)}"
    if requested := re.search(TRIED_PATTERN, str(error)):
        usage += f", and {requested.group(1)} more were requested"
    return _message(usage, multiple, batch_size, block_size, devices, passes)


def _message(
    usage: str,
    multiple: int,
    batch_size: int,
    block_size: int,
    devices: int,
    passes: int,
    fits: Callable[[int], bool] = lambda blocks: True,
) -> str:
    message = f"out of memory: {batch_size} blocks of {block_size} tokens in one pass{usage}. "
    if parts := smallest_split(batch_size, multiple * devices, fits):
        smaller = f"data.batch_size={batch_size // parts} trainer.accumulate_grad_batches={passes * parts}"
        return message + f"Restart with {smaller}: one step still uses {batch_size * passes} blocks"
    return message + "Restart with a smaller model.block_size or model.n_embd, or with more memory"


def smallest_split(batch_size: int, multiple: int, fits: Callable[[int], bool] = lambda blocks: True) -> int:
    """The smallest number above 1 of equal micro-batches into which a batch can be split; 0 if it cannot.

    Args:
        multiple: the size of each micro-batch must be a multiple of this.
        fits: whether a micro-batch of this many blocks fits into memory.
    """
    small = [n for n in range(1, math.isqrt(batch_size) + 1) if batch_size % n == 0]
    divisors = sorted({*small, *(batch_size // n for n in small)} - {1})
    return next((n for n in divisors if batch_size // n % multiple == 0 and fits(batch_size // n)), 0)


def estimate(module: LanguageModeling, blocks: int, block_size: int) -> int:
    """Bytes of weights, gradients, optimizer state and the activations saved for the backward pass.

    The activations are measured with the smallest batch that the model accepts, and scaled. 0 if even that batch
    does not fit into memory.
    """
    smallest = module.model.batch_multiple
    saved: dict[int, int] = {p.untyped_storage().data_ptr(): 0 for p in module.parameters()}

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        saved.setdefault(storage.data_ptr(), storage.nbytes())
        alive.append(tensor)  # a freed tensor's address would be reused, and the next tensor not counted
        return tensor

    alive: list[Tensor] = []
    with contextlib.suppress(RuntimeError, MemoryError):
        tokens_BT = torch.zeros(smallest, block_size, dtype=torch.long, device=module.device)
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            module.loss(tokens_BT, tokens_BT)
        parameters = sum(p.numel() for p in module.parameters())
        return PARAMETER_BYTES * parameters + sum(saved.values()) * blocks // smallest
    return 0
