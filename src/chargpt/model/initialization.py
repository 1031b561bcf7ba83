"""Weight initialization: functions that set the initial weights of a complete model."""

import math
from collections.abc import Iterator

import torch
from torch import nn

from chargpt.errors import UserError
from chargpt.model.transformer import Transformer


def torch_default(model: Transformer) -> None:
    """Keeps torch's defaults: N(0, 1) embeddings, uniform +-1/sqrt(fan in) linear layers."""


@torch.no_grad()
def normal(model: Transformer, std: float = 0.02) -> None:
    """Weights of linear layers and embeddings from N(0, std), biases 0, as in the lecture's final script."""
    if not std >= 0:
        raise UserError(f"model.initialization.std={std}: it must not be negative")
    for module in _layers_to_initialize(model):
        nn.init.normal_(module.weight, std=std)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)


@torch.no_grad()
def gpt2(model: Transformer, std: float = 0.02) -> None:
    """`normal`, with the N projections into the residual stream scaled by 1/sqrt(N).

    Radford et al. 2019 (GPT-2), section 2.3.
    """
    normal(model, std)
    projections = model.residual_projections()
    for projection in projections:
        nn.init.normal_(projection.weight, std=std / math.sqrt(len(projections)))


@torch.no_grad()
def zero_projections(model: Transformer, std: float = 0.02, head: bool = False) -> None:
    """`normal`, with zero projections into the residual stream, so that each block starts as the identity.

    Goyal et al. 2017, section 5.1 (for residual networks); Yang et al. 2022, appendix D.2, for the head.

    Args:
        head: whether the output head is zero too, so that the initial loss is ln V. Not possible with tied weights,
            where the head is the token embedding.
    """
    if head and model.head.weight is model.token_embedding.weight:
        raise UserError(
            "model.initialization.head=true: with tied weights it would zero the token embedding too; "
            "set model.tie_weights=false"
        )
    normal(model, std)
    for projection in model.residual_projections():
        nn.init.zeros_(projection.weight)
    if head:
        nn.init.zeros_(model.head.weight)


@torch.no_grad()
def unit_embedding(model: Transformer, gain: float = 0.5, head: bool | None = None) -> None:
    """Scales the weights so that a layer's output has a root mean square of about `gain` at any width; biases 0.

    Embeddings are N(0, 1); matrices, and embeddings tied to the head, are N(0, gain^2 / fan in), as in muP (Yang et
    al. 2022); projections into the residual stream are zero, as in `zero_projections`.

    Args:
        head: whether the output head is zero too, so that the initial loss is ln V; None: if the weights are not tied.
    """
    if not gain >= 0 or head not in (True, False, None):
        raise UserError(
            f"model.initialization: gain={gain}, head={head}: gain must be 0 or more, and head true, false or null"
        )
    tied = model.head.weight is model.token_embedding.weight
    zero_projections(model, head=not tied if head is None else head)
    projections = set(model.residual_projections())
    for module in _layers_to_initialize(model):
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=gain / math.sqrt(model.n_embd) if tied else 1.0)
        elif module is not model.head and module not in projections:
            nn.init.normal_(module.weight, std=gain / math.sqrt(module.in_features))


def _layers_to_initialize(model: Transformer) -> Iterator[nn.Linear | nn.Embedding]:
    """Linear layers and embeddings, except those of submodules that initialize themselves."""
    self_initialized = [part for part in (model.ngram_embedding, model.value_residual) if part is not None]
    excluded = {module for part in self_initialized for module in part.modules()}
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Embedding) and module not in excluded:
            yield module
