"""The cross-entropy loss, and its conversion to bits per character and perplexity."""

import math

from jaxtyping import Float, Integer
from torch import Tensor
from torch.nn import functional as F

from chargpt.data.dataloader import IGNORE_INDEX


def cross_entropy(
    logits_BTV: Float[Tensor, "B T V"], targets_BT: Integer[Tensor, "B T"], reduction: str = "mean"
) -> Float[Tensor, ""]:
    """Negative log-likelihood of the targets in nats, mean or sum; targets equal to `IGNORE_INDEX` do not count."""
    logits = logits_BTV.flatten(0, 1).float()
    return F.cross_entropy(logits, targets_BT.flatten(), ignore_index=IGNORE_INDEX, reduction=reduction)


def bits_per_character(loss: float, characters_per_token: float) -> float:
    """Converts nats per token to bits per character of text, which are comparable across tokenizers."""
    return loss / math.log(2) / characters_per_token


def perplexity(loss: float) -> float:
    """e^loss, the equivalent number of equally likely tokens; infinite on overflow."""
    return math.exp(loss) if loss < 700 else math.inf
