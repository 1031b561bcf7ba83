"""The lecture's first model: each token looks up the logits of the next one in a V x V table."""

from jaxtyping import Float, Integer
from torch import Tensor, nn

from chargpt.errors import UserError
from chargpt.model.language_model import LanguageModel


class Bigram(LanguageModel):
    """logits[b, t] = table[tokens[b, t]]: no context but the last token.

    Args:
        vocab_size: V.
        block_size: tokens of a training block; the table itself has no notion of it.
        std: standard deviation of the table at the start. The lecture's N(0, 1) starts near a loss of 4.87, for
            its confident guesses are wrong ones; towards 0 the start is the calibrated ln V.
    """

    def __init__(self, vocab_size: int, block_size: int = 8, std: float = 1.0):
        super().__init__()
        if std < 0:
            raise UserError(f"std={std}: it must not be negative")
        self.vocab_size, self.block_size = vocab_size, block_size
        self.table = nn.Embedding(vocab_size, vocab_size)
        nn.init.normal_(self.table.weight, std=std)

    def forward(self, tokens_BT: Integer[Tensor, "B T"], cache: None = None) -> Float[Tensor, "B T V"]:
        return self.table(tokens_BT)

    def input_embeddings(self) -> Float[Tensor, "V C"]:
        return self.table.weight

    def flops_per_token(self) -> int:
        """A look-up is no matrix product: 0."""
        return 0
