"""Computes the loss of a trained model on a text."""

import torch
from jaxtyping import Integer
from torch import Tensor

from chargpt.data.dataloader import EvalBlockLoader
from chargpt.model.language_model import LanguageModel
from chargpt.model.loss import cross_entropy


@torch.no_grad()
def mean_loss(model: LanguageModel, tokens_N: Integer[Tensor, " N"], tokens_per_pass: int) -> float:
    """Returns the mean loss in nats per token over N >= 2 tokens, in non-overlapping blocks of `model.block_size`."""
    tokens_N = tokens_N.to(model.device)
    total = 0.0
    for inputs_BT, targets_BT in EvalBlockLoader(
        tokens_N, model.block_size, max(1, tokens_per_pass // model.block_size)
    ):
        total += cross_entropy(model(inputs_BT), targets_BT, reduction="sum").item()
    return total / (len(tokens_N) - 1)
