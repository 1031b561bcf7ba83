"""Several models that learn apart and guess together: what one knows by heart, the others do not believe."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Integer
from torch import Tensor, nn

from chargpt.errors import UserError
from chargpt.model.language_model import LanguageModel
from chargpt.model.transformer import KVCache, Transformer

MAX_MEMBERS = 1_000  # members: more would be built for minutes, until the memory is used up


class Ensemble(LanguageModel):
    """Probabilities are the mean of the members' (Lakshminarayanan et al. 2017, deep ensembles).

    In training each member is given an equal share of the batch, and the loss is the mean of the members' losses,
    as if each stood alone; the validation loss is that of all together. Optimizers that do not look at the size of
    a gradient (AdamW, Muon) train each as if it were alone; a limit on the gradient's norm is one for all.

    Args:
        vocab_size: V.
        block_size: the longest context T.
        members: how many; each has first weights of its own.
        member: makes one from the sizes and `settings`.
        settings: what each member is made with besides.
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
            raise UserError(f"model.members={members}: it must be 1 or more, and at most {MAX_MEMBERS:,}")
        self.vocab_size, self.block_size, self.batch_multiple = vocab_size, block_size, members
        self.members = nn.ModuleList(member(vocab_size, block_size, **settings) for _ in range(members))

    def forward(self, tokens_BT: Integer[Tensor, "B T"], cache: list[KVCache] | None = None) -> Float[Tensor, "B T V"]:
        """In training, the logits of the member that each sequence was given to: the first ones to the first, and
        so on. Otherwise those of all together.

        Raises:
            ValueError: in training, sequences that cannot be shared out equally.
        """
        if not self.training or cache is not None:
            caches = cache or [None] * len(self.members)
            return average_logits([m(tokens_BT, c) for m, c in zip(self.members, caches, strict=True)])
        if len(tokens_BT) % len(self.members):
            raise ValueError(f"{len(tokens_BT)} sequences are no equal shares for {len(self.members)} members")
        shares = tokens_BT.chunk(len(self.members))
        return torch.cat([m(share) for m, share in zip(self.members, shares, strict=True)])

    def new_cache(self, batch_size: int) -> list[KVCache]:
        """A member's memory for each."""
        return [member.new_cache(batch_size) for member in self.members]

    def input_embeddings(self) -> Float[Tensor, "V C"]:
        """The first member's."""
        return self.members[0].input_embeddings()

    def matrix_parameters(self) -> list[tuple[nn.Parameter, int]]:
        return [matrix for member in self.members for matrix in member.matrix_parameters()]

    def flops_per_token(self) -> int:
        """A token of training goes through one member."""
        return self.members[0].flops_per_token()


def average_logits(logits: Sequence[Float[Tensor, "*B V"]]) -> Float[Tensor, "*B V"]:
    """The logarithm of the mean of their softmaxes: logits too."""
    log_probabilities = torch.stack([some.float().log_softmax(dim=-1) for some in logits])
    return log_probabilities.logsumexp(dim=0) - math.log(len(logits))
