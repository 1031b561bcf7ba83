"""The weights at the start: functions that are handed the finished model."""

import math

import torch
from torch import nn

from chargpt.errors import Mistake
from chargpt.model.transformer import Transformer


def torch_default(model: Transformer) -> None:
    """As torch made them: N(0, 1) embeddings, uniform +-1/sqrt(fan in) linear layers."""


@torch.no_grad()
def normal(model: Transformer, std: float = 0.02) -> None:
    """Weights of linear layers and embeddings from N(0, std), biases 0: the lecture's final script."""
    if not std >= 0:
        raise Mistake(f"model.initialization.std={std}: it must not be negative")
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=std)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)


@torch.no_grad()
def gpt2(model: Transformer, std: float = 0.02) -> None:
    """`normal`, with the projections that feed the residual stream scaled by 1/sqrt(their number).

    Radford et al. 2019 (GPT-2), section 2.3.
    """
    normal(model, std)
    projections = model.residual_projections()
    for projection in projections:
        nn.init.normal_(projection.weight, std=std / math.sqrt(len(projections)))


@torch.no_grad()
def zero_projections(model: Transformer, std: float = 0.02, head: bool = False) -> None:
    """`normal`, with the projections that feed the residual stream 0: each block starts as the identity.

    Goyal et al. 2017, section 5.1 (for residual networks); Yang et al. 2022, appendix D.2, for the head.

    Args:
        head: whether the output head is 0 too, so that training starts at ln V. Not with tied weights, whose
            head is the token embedding.
    """
    if head and model.head.weight is model.token_embedding.weight:
        raise Mistake(
            "model.initialization.head=true would zero the token embedding too: take model.tie_weights=false"
        )
    normal(model, std)
    for projection in model.residual_projections():
        nn.init.zeros_(projection.weight)
    if head:
        nn.init.zeros_(model.head.weight)
