"""U-net skip connections between the first and the last blocks."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn


class UNetSkips(nn.Module):
    """Adds the output of block i, times a learned weight, to the input of block L - 1 - i.

    As in modded-nanogpt's U-net pattern (2024), which is based on Ronneberger et al. 2015, section 2.

    Args:
        n_layer: L.
        weight: the initial weight of each skip connection.
    """

    def __init__(self, n_layer: int, weight: float = 1.0):
        super().__init__()
        self.n_layer = n_layer
        skips = (n_layer - 1) // 2
        # With fewer than three blocks there are no skips, and DDP would wait for the gradient of an unused parameter.
        self.weights_S = nn.Parameter(torch.full((skips,), float(weight))) if skips else None

    def forward(
        self, x_BTC: Float[Tensor, "B T C"], outputs: Sequence[Float[Tensor, "B T C"]]
    ) -> Float[Tensor, "B T C"]:
        """The input of the next block; `outputs` are those of the earlier blocks."""
        from_block = self.n_layer - 1 - len(outputs)
        # Without skips, in the first half, and in the block right after its source:
        if self.weights_S is None or from_block >= len(outputs) - 1:
            return x_BTC
        return x_BTC + self.weights_S[from_block].to(x_BTC.dtype) * outputs[from_block]
