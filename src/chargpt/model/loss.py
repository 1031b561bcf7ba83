"""How wrong a model is: the loss, and the same figure in other units."""

import math

from jaxtyping import Float, Integer
from torch import Tensor
from torch.nn import functional as F

from chargpt.data.dataloader import IGNORE_INDEX


def cross_entropy(
    logits_BTV: Float[Tensor, "B T V"], targets_BT: Integer[Tensor, "B T"], reduction: str = "mean"
) -> Float[Tensor, ""]:
    """Negative log-likelihood of the targets in nats, mean or sum; `IGNORE_INDEX`d ones do not count."""
    logits = logits_BTV.flatten(0, 1).float()
    return F.cross_entropy(logits, targets_BT.flatten(), ignore_index=IGNORE_INDEX, reduction=reduction)


def bits_per_character(loss: float, characters_per_token: float) -> float:
    """Nats a token as bits a character of text: comparable across tokenizers."""
    return loss / math.log(2) / characters_per_token


def perplexity(loss: float) -> float:
    """e^loss: among how many equally likely tokens the model might as well choose. Infinite where it overflows."""
    return math.exp(loss) if loss < 700 else math.inf
