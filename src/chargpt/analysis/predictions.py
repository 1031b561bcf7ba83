"""What a model expects along a text, and where it looks meanwhile."""

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from chargpt.model.attention import CausalSelfAttention
from chargpt.model.ensemble import Ensemble
from chargpt.model.language_model import LanguageModel


@torch.no_grad()
def log_probabilities(model: LanguageModel, tokens_T: Integer[Tensor, " T"]) -> Float[Tensor, "T V"]:
    """Natural logarithms of the probabilities of each token that could follow each prefix of the text.

    Row t is what comes after tokens 0 .. t. As in sampling, a prefix longer than `block_size` is cropped to its
    last `block_size` tokens.

    Args:
        model: in eval mode.
        tokens_T: at least one token.
    """
    tokens_T = tokens_T.long().to(model.device)
    block_size = model.block_size
    logits_TV = model(tokens_T[None, :block_size])[0]
    if len(tokens_T) > block_size:
        windows = tokens_T.unfold(0, block_size, 1)[1:]
        rest = [model(some_BT)[:, -1] for some_BT in windows.split(64)]
        logits_TV = torch.cat((logits_TV, *rest))
    return logits_TV.float().log_softmax(dim=-1).cpu()


@torch.no_grad()
def attention_maps(model: LanguageModel, tokens_T: Integer[Tensor, " T"]) -> list[Float[Tensor, "H T T"]]:
    """The attention weights of each layer: row t of a head says how much token t takes from each token.

    Args:
        model: in eval mode.
        tokens_T: at most `block_size` tokens.

    Returns:
        One tensor a layer, of an ensemble's first member; none for a model without attention.
    """
    maps: list[Tensor] = []
    model = model.members[0] if isinstance(model, Ensemble) else model
    layers = [module for module in model.modules() if isinstance(module, CausalSelfAttention)]
    hooks = [
        layer.register_forward_pre_hook(
            lambda layer, given: maps.append(layer.attention_weights(given[0], given[1].rotation)[0].float().cpu())
        )
        for layer in layers
    ]
    try:
        model(tokens_T.long().to(model.device)[None])
    finally:
        for hook in hooks:
            hook.remove()
    return maps
