"""Dropout with fast generation of the mask on the CPU.

On a CPU, torch draws one Bernoulli number per element, which takes 6 to 8 ns: a quarter of a training step of a model
with 10M parameters. Comparing sixteen random bits per element with a threshold takes a fifth of that.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

NUM_MASK_LEVELS = 1 << 16  # probabilities are rounded to a multiple of 1 / 65536


def dropout(x: Float[Tensor, "*shape"], p: float, training: bool) -> Float[Tensor, "*shape"]:
    """Zeroes each element with probability p and scales the others by 1 / (1 - p) (Srivastava et al. 2014).

    Args:
        p: in [0, 1).
        training: if False, x is returned unchanged.
    """
    if not training or p == 0:
        return x
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return F.dropout(x, p, True)
    return _Dropout.apply(x, p)


def vector_dropout(x_BTC: Float[Tensor, "B T C"], p: float, training: bool) -> Float[Tensor, "B T C"]:
    """Dropout of complete vectors: zeroes each vector with probability p and scales the others by 1 / (1 - p).

    Gal and Ghahramani 2016, "A Theoretically Grounded Application of Dropout in RNNs", section 4.2, but drawn
    independently for each position.
    """
    if not training or p == 0:
        return x_BTC
    return x_BTC * dropout(x_BTC.new_ones(*x_BTC.shape[:-1], 1), p, training)


def keep_mask(shape: torch.Size | tuple[int, ...], p: float) -> tuple[Tensor, float]:
    """A boolean mask of the elements to keep, from torch's default CPU generator, and their factor 1 / (1 - p)."""
    count = torch.Size(shape).numel()
    bits = torch.empty(-(-count // 4), dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
    dropped = min(round(p * NUM_MASK_LEVELS), NUM_MASK_LEVELS - 1)
    keep = bits[:count].view(shape) >= dropped - NUM_MASK_LEVELS // 2
    return keep, NUM_MASK_LEVELS / (NUM_MASK_LEVELS - dropped)


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, p: float) -> Tensor:
        keep, ctx.scale = keep_mask(x.shape, p)
        ctx.save_for_backward(keep)
        return (x * keep).mul_(ctx.scale)

    @staticmethod
    def backward(ctx, *gradients: Tensor) -> tuple[Tensor, None]:
        (grad,), (keep,) = gradients, ctx.saved_tensors
        return (grad * keep).mul_(ctx.scale), None
