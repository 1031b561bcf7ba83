"""Embeddings of the last few tokens together: what a table of pairs knows, at the cost of a look-up."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Integer
from torch import Tensor, nn

from chargpt.errors import UserError
from chargpt.model.kernels.dropout import vector_dropout

HASH_MULTIPLIER = 2_654_435_761  # Knuth's multiplicative hashing: 2^32 over the golden ratio
MAX_BUCKETS = 1 << 31
MAX_N = 64  # n of an n-gram: there are V^n


class NGramEmbedding(nn.Module):
    """To each token's embedding, those of the pair, the triple, ... that it ends.

    Tables start at 0. One for n-grams has V^n rows, or `buckets` where that is fewer, and n-grams then share rows
    by hashing (Svenstrup et al. 2017, "Hash Embeddings"). A text's first tokens follow tokens 0.

    Args:
        vocab_size: V.
        n_embd: C.
        lengths: the n, whole numbers.
        buckets: rows of a table at most.
        dropout: in [0, 1), of each n-gram's embedding as a whole: in a run of many epochs the tables know the
            text by heart, and the blocks would learn nothing else.
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
                f"model.ngram_embedding: lengths={list(lengths)}, buckets={buckets}: lengths are from 2 to {MAX_N}, "
                f"buckets 1 or more"
            )
        if not 0 <= dropout < 1:
            raise UserError(f"model.ngram_embedding.dropout={dropout}: it must be at least 0 and less than 1")
        self.vocab_size, self.lengths, self.dropout = vocab_size, tuple(lengths), dropout
        self.tables = nn.ModuleList(nn.Embedding(min(vocab_size**n, buckets), n_embd) for n in lengths)
        for table in self.tables:
            nn.init.zeros_(table.weight)

    @property
    def context_length(self) -> int:
        """How many tokens before a token count."""
        return max(self.lengths) - 1

    def forward(
        self, tokens_BT: Integer[Tensor, "B T"], before_BR: Integer[Tensor, "B R"] | None = None
    ) -> Float[Tensor, "B T C"]:
        """The sum of the embeddings of the n-grams that each token ends.

        Args:
            before_BR: the R = `context_length` tokens before; tokens 0 if None.
        """
        B, T = tokens_BT.shape
        if before_BR is None:
            before_BR = tokens_BT.new_zeros(B, self.context_length)
        all_BS = torch.cat((before_BR, tokens_BT), dim=1)
        return sum(
            vector_dropout(table(self._rows(all_BS, n, table.num_embeddings)[:, -T:]), self.dropout, self.training)
            for n, table in zip(self.lengths, self.tables, strict=True)
        )

    def _rows(self, all_BS: Tensor, n: int, buckets: int) -> Tensor:
        """Of the n-gram that each token from the n-th on ends."""
        length = all_BS.shape[1] - n + 1
        row_BS = all_BS[:, n - 1 :]
        hashed = self.vocab_size**n > buckets
        # Hashed by an even base, the newest token would lose bits.
        base = self.vocab_size | 1 if hashed else self.vocab_size
        for back in range(1, n):
            row_BS = row_BS * base + all_BS[:, n - 1 - back :][:, :length]
            if hashed:
                row_BS = row_BS * HASH_MULTIPLIER % MAX_BUCKETS
        return row_BS % buckets
