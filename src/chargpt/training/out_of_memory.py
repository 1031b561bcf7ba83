"""When memory is not enough: how much a step wants, and which settings want less and learn the same."""

import contextlib
import re

import torch
from torch import Tensor

from chargpt.errors import UserError
from chargpt.training.lightning_module import LanguageModeling
from chargpt.utils.memory import available_memory

PARAMETER_BYTES = 16  # float32: the weight, its gradient, and two averages of an optimizer such as AdamW
SMALL_TENSOR = 4096  # tokens of a pass that are not worth a look
# The figures in the error of torch's CUDA allocator.
TRIED_PATTERN, CAPACITY_PATTERN = r"Tried to allocate ([\d.]+ \w+)", r"total capacity of ([\d.]+ \w+)"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether that is what an error says; torch has a type for it on GPUs alone."""
    words = ("can't allocate memory", "not enough memory", "out of memory")
    told = isinstance(error, RuntimeError) and any(word in str(error) for word in words)
    return told or isinstance(error, MemoryError | torch.OutOfMemoryError)


def check(module: LanguageModeling, batch_size: int, block_size: int, processes: int, passes: int) -> None:
    """Looks ahead on a CPU, where a process that wants too much is not told so, but killed.

    Raises:
        UserError: the first step would want more than there is.
    """
    parameters = PARAMETER_BYTES * sum(p.numel() for p in module.parameters())
    small = batch_size * block_size <= SMALL_TENSOR
    want = parameters if small else estimate(module, batch_size // processes, block_size)
    if (there := available_memory()) < want * processes:
        line = describe(module, batch_size, block_size, processes, passes)
        raise UserError(f"{line}. There are {there / 2**30:,.1f} GiB to be had on this machine")


def describe(module: LanguageModeling, batch_size: int, block_size: int, devices: int, passes: int) -> str:
    """What there is not enough memory for, and what to try.

    Args:
        batch_size: blocks of one forward pass over all devices.
        passes: forward passes of a step.
    """
    want = estimate(module, batch_size // devices, block_size)
    wanted = f", which want about {want / 2**30:,.1f} GiB on each device" if want else ""
    return _line(wanted, module.model.batch_multiple, batch_size, block_size, devices, passes)


def describe_gpu(
    error: BaseException,
    device: torch.device,
    multiple: int,
    batch_size: int,
    block_size: int,
    devices: int,
    passes: int,
) -> str:
    """The same after a GPU's memory was not enough: by the allocator's peak, and the figures in its error.

    Args:
        device: that trained; the module has left it by then.
        multiple: the model's `batch_multiple`.
    """
    peak = torch.cuda.max_memory_allocated(device)
    wanted = f". The GPU held {peak / 2**30:,.1f} GiB"
    if there := re.search(CAPACITY_PATTERN, str(error)):
        wanted += f" of {there.group(1)}"
    if asked := re.search(TRIED_PATTERN, str(error)):
        wanted += f" and was asked for {asked.group(1)} more"
    return _line(wanted, multiple, batch_size, block_size, devices, passes)


def _line(wanted: str, multiple: int, batch_size: int, block_size: int, devices: int, passes: int) -> str:
    line = f"out of memory: {batch_size} blocks of {block_size} tokens in one pass{wanted}. "
    if parts := smallest_split(batch_size, multiple * devices):
        smaller = f"data.batch_size={batch_size // parts} trainer.accumulate_grad_batches={passes * parts}"
        return line + f"Start again with {smaller}: a step then still sees {batch_size * passes} blocks"
    return line + "Start again with a smaller model.block_size or model.n_embd, or on more memory"


def smallest_split(batch_size: int, multiple: int) -> int:
    """The smallest number of equal parts, above 1, into which a batch can be cut; 0 if it cannot.

    Args:
        multiple: of which each part must be one.
    """
    return next((n for n in range(2, batch_size + 1) if batch_size % n == 0 and batch_size // n % multiple == 0), 0)


def estimate(module: LanguageModeling, blocks: int, block_size: int) -> int:
    """Bytes for weights, gradients, an optimizer and what a forward pass keeps for its backward pass.

    The last is measured: with as few blocks as the model takes, and multiplied. 0 if not even those have room.
    """
    few = module.model.batch_multiple
    kept: dict[int, int] = {p.untyped_storage().data_ptr(): 0 for p in module.parameters()}

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept.setdefault(storage.data_ptr(), storage.nbytes())
        alive.append(tensor)  # else its place would be used again, and not be counted
        return tensor

    alive: list[Tensor] = []
    with contextlib.suppress(RuntimeError, MemoryError):
        tokens_BT = torch.zeros(few, block_size, dtype=torch.long, device=module.device)
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            module.loss(tokens_BT, tokens_BT)
        parameters = sum(p.numel() for p in module.parameters())
        return PARAMETER_BYTES * parameters + sum(kept.values()) * blocks // few
    return 0
