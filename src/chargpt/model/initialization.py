"""The weights at the start: functions that are handed the finished model."""

import math
from collections.abc import Iterator

import torch
from torch import nn

from chargpt.errors import UserError
from chargpt.model.transformer import Transformer


def torch_default(model: Transformer) -> None:
    """As torch made them: N(0, 1) embeddings, uniform +-1/sqrt(fan in) linear layers."""


@torch.no_grad()
def normal(model: Transformer, std: float = 0.02) -> None:
    """Weights of linear layers and embeddings from N(0, std), biases 0: the lecture's final script."""
    if not std >= 0:
        raise UserError(f"model.initialization.std={std}: it must not be negative")
    for module in _plain(model):
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
        raise UserError(
            "model.initialization.head=true would zero the token embedding too: take model.tie_weights=false"
        )
    normal(model, std)
    for projection in model.residual_projections():
        nn.init.zeros_(projection.weight)
    if head:
        nn.init.zeros_(model.head.weight)


@torch.no_grad()
def unit_embedding(model: Transformer, gain: float = 0.5, head: bool | None = None) -> None:
    """Every weight such that what it gives has about the size of `gain`, whatever the width; biases 0.

    Embeddings are N(0, 1); matrices N(0, gain^2 / fan in), as in muP (Yang et al. 2022), and so are embeddings
    tied to the head; projections into the residual stream 0, as in `zero_projections`.

    Args:
        head: whether the output head is 0 too, so that training starts at ln V; None: unless it is the embedding.
    """
    if not gain >= 0 or head not in (True, False, None):
        raise UserError(f"model.initialization: gain={gain} and head={head}: 0 or more; and true, false or null")
    tied = model.head.weight is model.token_embedding.weight
    zero_projections(model, head=not tied if head is None else head)
    projections = set(model.residual_projections())
    for module in _plain(model):
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=gain / math.sqrt(model.n_embd) if tied else 1.0)
        elif module is not model.head and module not in projections:
            nn.init.normal_(module.weight, std=gain / math.sqrt(module.in_features))


def _plain(model: Transformer) -> Iterator[nn.Linear | nn.Embedding]:
    """Linear layers and embeddings, but for the parts that know best themselves."""
    theirs = {m for part in (model.ngram_embedding, model.value_residual) if part is not None for m in part.modules()}
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Embedding) and module not in theirs:
            yield module
