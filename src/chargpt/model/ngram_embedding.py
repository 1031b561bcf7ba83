"""Embeddings of n-grams: each sequence of n tokens has its own row in a table."""

from collections.abc import Sequence
from typing import cast

import torch
from jaxtyping import Float, Integer
from torch import Tensor, nn

from chargpt.errors import UserError
from chargpt.model.kernels.dropout import vector_dropout

HASH_MULTIPLIER = 2_654_435_761  # Knuth's multiplicative hashing: 2^32 over the golden ratio
MAX_BUCKETS = 1 << 31
MAX_N = 64  # V^n is computed exactly: n from an untrusted file must not take minutes


class NGramEmbedding(nn.Module):
    """Adds to each token's embedding the embeddings of the bigram, trigram, ... that ends at the token.

    The tables are initialized to 0. The table for each n has V^n rows, but at most `buckets`: more n-grams than that
    share rows by hashing (Svenstrup et al. 2017, "Hash Embeddings"). A text is padded on the left with token 0.

    Args:
        vocab_size: V.
        n_embd: C.
        lengths: the values of n, integers.
        buckets: the largest number of rows of a table.
        dropout: in [0, 1), the probability that an n-gram's complete embedding is dropped. Without dropout, the
            tables memorize the text over many epochs, and the blocks learn little.
    """

    def __init__(
        self,
        vocab_size: int,
        n_embd: int,
        lengths: Sequence[float] = (2,),
        buckets: int = 16384,
        dropout: float = 0.0,
    ):
        super().__init__()
        if not lengths or not all(isinstance(n, int) and 2 <= n <= MAX_N for n in lengths) or buckets < 1:
            raise UserError(
                f"model.ngram_embedding: lengths={list(lengths)}, buckets={buckets}: lengths must be integers from 2 "
                f"to {MAX_N}, buckets 1 or more"
            )
        if not 0 <= dropout < 1:
            raise UserError(f"model.ngram_embedding.dropout={dropout}: it must be at least 0 and less than 1")
        self.vocab_size, self.lengths, self.dropout = vocab_size, tuple(map(int, lengths)), dropout
        modules = nn.ModuleList(nn.Embedding(min(vocab_size**n, buckets), n_embd) for n in self.lengths)
        self.tables = cast(Sequence[nn.Embedding], modules)  # torch types every element as a plain Module
        for table in self.tables:
            nn.init.zeros_(table.weight)

    @property
    def context_length(self) -> int:
        """The number of earlier tokens that the embedding of a token depends on."""
        return max(self.lengths) - 1

    def forward(
        self, tokens_BT: Integer[Tensor, "B T"], previous_BR: Integer[Tensor, "B R"] | None = None
    ) -> Float[Tensor, "B T C"]:
        """For each token, the sum of the embeddings of the n-grams that end at it.

        Args:
            previous_BR: the R = `context_length` tokens before tokens_BT; token 0 if None.
        """
        B, T = tokens_BT.shape
        if previous_BR is None:
            previous_BR = tokens_BT.new_zeros(B, self.context_length)
        all_BS = torch.cat((previous_BR, tokens_BT), dim=1)
        embeddings = (
            vector_dropout(table(self._rows(all_BS, n, table.num_embeddings)[:, -T:]), self.dropout, self.training)
            for n, table in zip(self.lengths, self.tables, strict=True)
        )
        return cast(Tensor, sum(embeddings))  # there is at least one table, so it is not the 0 of an empty sum

    def _rows(self, all_BS: Tensor, n: int, buckets: int) -> Tensor:
        """The table row of the n-gram that ends at each token, from the n-th token on."""
        length = all_BS.shape[1] - n + 1
        row_BS = all_BS[:, n - 1 :]
        hashed = self.vocab_size**n > buckets
        # With an even base, the hash would lose bits of the newest token.
        base = self.vocab_size | 1 if hashed else self.vocab_size
        for back in range(1, n):
            row_BS = row_BS * base + all_BS[:, n - 1 - back :][:, :length]
            if hashed:
                row_BS = row_BS * HASH_MULTIPLIER % MAX_BUCKETS
        return row_BS % buckets
