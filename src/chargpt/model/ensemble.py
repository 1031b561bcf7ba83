"""An ensemble: independently trained models whose probabilities are averaged."""

import math
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from jaxtyping import Float, Integer
from torch import Tensor, nn

from chargpt.errors import UserError
from chargpt.model.language_model import LanguageModel
from chargpt.model.transformer import KVCache, Transformer

MAX_MEMBERS = 1_000  # a config from an untrusted file must not use up the memory


class Ensemble(LanguageModel):
    """Averages the probabilities of its members (Lakshminarayanan et al. 2017, deep ensembles).

    In training each member gets an equal share of the batch, and the loss is the mean of the members' losses. The
    validation loss is that of the averaged probabilities. Optimizers that do not depend on the scale of a gradient
    (AdamW, Muon) train each member as if it were alone; gradient clipping uses the norm over all members.

    Args:
        vocab_size: V.
        block_size: the longest context T.
        members: the number of members, which have different initial weights.
        member: builds a member from (vocab_size, block_size) and `settings`.
        settings: further arguments of `member`.
    """

    def __init__(
        self,
        vocab_size: int,
        block_size: int,
        members: int,
        member: Callable[..., LanguageModel] = Transformer,
        **settings: Any,
    ):
        super().__init__()
        if not 1 <= members <= MAX_MEMBERS:
            raise UserError(f"model.members={members}: it must be from 1 to {MAX_MEMBERS:,}")
        self.vocab_size, self.block_size, self.batch_multiple = vocab_size, block_size, members
        modules = nn.ModuleList(member(vocab_size, block_size, **settings) for _ in range(members))
        self.members = cast(Sequence[LanguageModel], modules)  # torch types every element as a plain Module

    def forward(self, tokens_BT: Integer[Tensor, "B T"], cache: list[KVCache] | None = None) -> Float[Tensor, "B T V"]:
        """In evaluation, or with a cache, the averaged logits. In training, the first member computes the logits of the
        first share of the batch, the second member those of the second share, and so on.

        Raises:
            ValueError: in training, the batch cannot be split into equal shares.
        """
        if not self.training or cache is not None:
            caches = cache or [None] * len(self.members)
            return average_logits([member(tokens_BT, c) for member, c in zip(self.members, caches, strict=True)])
        if len(tokens_BT) % len(self.members):
            raise ValueError(f"{len(tokens_BT)} sequences cannot be split equally among {len(self.members)} members")
        shares = tokens_BT.chunk(len(self.members))
        return torch.cat([member(share) for member, share in zip(self.members, shares, strict=True)])

    def new_cache(self, batch_size: int) -> list[KVCache]:
        """An empty KV cache for each member."""
        return [member.new_cache(batch_size) for member in self.members]

    def input_embeddings(self) -> Float[Tensor, "V C"]:
        """The input embeddings of the first member."""
        return self.members[0].input_embeddings()

    def matrix_parameters(self) -> list[tuple[nn.Parameter, int]]:
        return [matrix for member in self.members for matrix in member.matrix_parameters()]

    def embedding_tables(self) -> list[nn.Embedding]:
        return [table for member in self.members for table in member.embedding_tables()]

    def flops_per_token(self) -> int | None:
        """The FLOPs of one member: in training, each token passes through only one."""
        return self.members[0].flops_per_token()


def average_logits(logits: Sequence[Float[Tensor, "*B V"]]) -> Float[Tensor, "*B V"]:
    """The logarithm of the mean of the softmax probabilities."""
    log_probabilities = torch.stack([x.float().log_softmax(dim=-1) for x in logits])
    return log_probabilities.logsumexp(dim=0) - math.log(len(logits))
