"""The lecture's bigram model: a V x V table with the logits of the next token for each token."""

from jaxtyping import Float, Integer
from torch import Tensor, nn

from chargpt.errors import UserError
from chargpt.model.language_model import LanguageModel


class Bigram(LanguageModel):
    """logits[b, t] = table[tokens[b, t]]: the context is the last token only.

    Args:
        vocab_size: V.
        block_size: tokens of a training block; the model itself does not use it.
        std: initial standard deviation of the table. With the lecture's N(0, 1) the initial loss is near 4.87,
            because the predictions are confident and wrong; with std towards 0 it is ln V.
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
        """0: a table look-up is not a matrix product."""
        return 0
