"""Ways for the stream past several blocks at once."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn


class UNetSkips(nn.Module):
    """Block L - 1 - i is given, besides its stream, the output of block i, times a learned weight.

    After modded-nanogpt's U-net pattern (2024), which has it from Ronneberger et al. 2015, section 2.

    Args:
        n_layer: L.
        weight: of each skip at the start.
    """

    def __init__(self, n_layer: int, weight: float = 1.0):
        super().__init__()
        self.n_layer = n_layer
        skips = (n_layer - 1) // 2
        # With fewer than three blocks there is nothing to skip, and DDP waits for the gradient of every parameter.
        self.weights_S = nn.Parameter(torch.full((skips,), float(weight))) if skips else None

    def forward(
        self, x_BTC: Float[Tensor, "B T C"], outputs: Sequence[Float[Tensor, "B T C"]]
    ) -> Float[Tensor, "B T C"]:
        """What the next block is given; `outputs` are those of the blocks before it."""
        from_block = self.n_layer - 1 - len(outputs)
        if from_block >= len(outputs) - 1:  # the first half, and the block that follows its source anyway
            return x_BTC
        return x_BTC + self.weights_S[from_block].to(x_BTC.dtype) * outputs[from_block]
