"""The soft cap on the logits."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from chargpt.errors import UserError


class SoftCap(nn.Module):
    """cap * tanh(x / cap): limits the logits to +-cap (Gemma 2, 2024, section 2)."""

    def __init__(self, cap: float = 15.0):
        super().__init__()
        if not 0 < cap < float("inf"):
            raise UserError(f"model.softcap.cap={cap}: it must be a finite number greater than 0")
        self.cap = cap

    def forward(self, logits_BTV: Float[Tensor, "B T V"]) -> Float[Tensor, "B T V"]:
        return self.cap * torch.tanh(logits_BTV / self.cap)
