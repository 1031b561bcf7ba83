"""Value mixers: submodules that change the values of a block's attention."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from chargpt.errors import UserError
from chargpt.model.block_context import BlockContext


class ValueResidual(nn.Module):
    """a v + b v_1, where v_1 are the first block's values (Zhou et al. 2024, "Value Residual Learning", eq. 7).

    a and b are learned and initialized to 1/2.
    """

    def __init__(self, vocab_size: int, n_embd: int):
        super().__init__()
        self.shares_2 = nn.Parameter(torch.full((2,), 0.5))

    def forward(self, values_BTC: Float[Tensor, "B T C"], context: BlockContext) -> Float[Tensor, "B T C"]:
        if context.values_BTC is None:
            context.values_BTC = values_BTC
        a, b = self.shares_2.to(values_BTC.dtype)
        return a * values_BTC + b * context.values_BTC


class ValueEmbedding(nn.Module):
    """v + b E[token], with a separate embedding table E in each block.

    As in modded-nanogpt's value embeddings (Jordan et al. 2024), which extend Zhou et al. 2024.

    Args:
        share: the initial value of b, which is learned.
        std: the initial standard deviation of the table.
    """

    def __init__(self, vocab_size: int, n_embd: int, share: float = 0.5, std: float = 0.5):
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, n_embd)
        if not 0 <= std < float("inf"):
            raise UserError(f"model.value_residual.std={std}: it must be a finite number, 0 or more")
        nn.init.normal_(self.embedding.weight, std=std)
        self.share = nn.Parameter(torch.tensor([float(share)]))  # FSDP does not support scalars

    def forward(self, values_BTC: Float[Tensor, "B T C"], context: BlockContext) -> Float[Tensor, "B T C"]:
        # The look-up comes before the cast: the gradient of a bfloat16 table would be summed in bfloat16.
        embedding_BTC = self.embedding(context.tokens_BT)
        return values_BTC + (self.share * embedding_BTC).to(values_BTC.dtype)
