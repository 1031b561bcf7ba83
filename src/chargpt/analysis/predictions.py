"""Computes a model's predictions and attention weights along a text."""

from typing import Any

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from chargpt.model.ensemble import Ensemble
from chargpt.model.language_model import LanguageModel


@torch.no_grad()
def log_probabilities(model: LanguageModel, tokens_T: Integer[Tensor, " T"]) -> Float[Tensor, "T V"]:
    """Returns the log probabilities, in nats, of every possible next token after each prefix of the text.

    Row t is the prediction after tokens 0 .. t. As in sampling, a prefix longer than `block_size` is cropped to its
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
        rest = [model(batch_BT)[:, -1] for batch_BT in windows.split(64)]
        logits_TV = torch.cat((logits_TV, *rest))
    return logits_TV.float().log_softmax(dim=-1).cpu()


@torch.no_grad()
def attention_maps(model: LanguageModel, tokens_T: Integer[Tensor, " T"]) -> list[Float[Tensor, "H T T"]]:
    """Returns the attention weights of each layer: row t of a head contains the weights of query t over all keys.

    Args:
        model: in eval mode.
        tokens_T: at most `block_size` tokens.

    Returns:
        One tensor per layer; of the first member for an ensemble; an empty list for a model whose modules have no
        method `attention_weights(x_BTC, rotation)`.
    """
    maps: list[Tensor] = []
    model = model.members[0] if isinstance(model, Ensemble) else model
    layers = [module for module in model.modules() if hasattr(module, "attention_weights")]

    def append_map(layer: Any, args: tuple[Any, ...]) -> None:
        maps.append(layer.attention_weights(args[0], args[1].rotation)[0].float().cpu())

    hooks = [layer.register_forward_pre_hook(append_map) for layer in layers]
    try:
        model(tokens_T.long().to(model.device)[None])
    finally:
        for hook in hooks:
            hook.remove()
    return maps
