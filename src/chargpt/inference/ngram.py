"""An n-gram model of the training text: the draft model of speculative sampling."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float, Integer
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from chargpt.utils.atomic_write import atomic_write

MAX_TOKENS = 10_000_000  # of the text that are counted
MAX_CONTEXT = 4  # tokens: longer contexts are worse predictions for a text of 1 MB (experiments/speed)
MAX_KEY = 2**63  # n-grams are numbers of type int64
MAX_MEMORY = 64 * 2**20  # bytes of the distributions that are kept


@dataclass(frozen=True)
class ContextTable:
    """The counts of the tokens that follow each context of c tokens.

    Args:
        contexts_K: the contexts, each as a number in base V, sorted.
        ends_K: the end of each context's entries in the next two arrays; they begin where the previous one's end.
        tokens_E: the tokens that follow.
        counts_E: how often.
    """

    FIELDS: ClassVar = ("contexts_K", "ends_K", "tokens_E", "counts_E")

    contexts_K: Integer[Tensor, " K"]
    ends_K: Integer[Tensor, " K"]
    tokens_E: Integer[Tensor, " E"]
    counts_E: Integer[Tensor, " E"]

    @property
    def num_bytes(self) -> int:
        return sum(getattr(self, name).nbytes for name in self.FIELDS)


class NGramModel:
    """P(w | h) = (count(h w) + types(h) P(w | h')) / (count(h) + types(h)), interpolated over contexts of all lengths.

    h' is h without its first token, types(h) the number of different tokens after h (Witten and Bell 1991; Chen and
    Goodman 1999, eq. 15). Without a context, P is interpolated with the uniform distribution.

    Args:
        vocab_size: V.
        tables: for contexts of 0, 1, 2, ... tokens.
    """

    def __init__(self, vocab_size: int, tables: Sequence[ContextTable]):
        self.vocab_size, self.tables = vocab_size, list(tables)
        self._arrays = [[getattr(table, name).numpy() for name in ContextTable.FIELDS] for table in tables]
        self._known: dict[tuple[int, ...], NDArray[np.float64]] = {}

    @classmethod
    def count(
        cls, tokens_N: Integer[Tensor, " N"], vocab_size: int, max_bytes: int, max_context: int = MAX_CONTEXT
    ) -> "NGramModel":
        """Counts the n-grams of a text.

        Args:
            max_bytes: the largest size of the tables, except that the counts of single tokens are always there; longer
                contexts are left out, the rarest first.
            max_context: the length of the longest context.
        """
        tokens_N = tokens_N[:MAX_TOKENS].long()
        lengths = (n for n in range(max_context + 1) if vocab_size ** (n + 1) < MAX_KEY and n < len(tokens_N))
        kept: list[ContextTable] = []
        for table in _count_all(tokens_N, vocab_size, max(lengths)):
            free = max_bytes - sum(shorter.num_bytes for shorter in kept)
            if kept and table.num_bytes > free:
                smaller = _without_rare_contexts(table, free)
                kept += [smaller] if smaller is not None else []
                break
            kept.append(table)
        return cls(vocab_size, kept)

    @property
    def context_length(self) -> int:
        """The number of previous tokens that a distribution depends on."""
        return len(self.tables) - 1

    @property
    def num_bytes(self) -> int:
        return sum(table.num_bytes for table in self.tables)

    def distribution(self, context: tuple[int, ...]) -> Float[NDArray, " V"]:
        """The probabilities of the next token. A context longer than `context_length` is cropped to its end."""
        context = context[max(0, len(context) - self.context_length) :]
        known = self._known.get(context)
        if known is None:
            if len(self._known) * self.vocab_size * 8 >= MAX_MEMORY:
                self._known.clear()
            known = self._known[context] = self._interpolate(context)
        return known

    def _interpolate(self, context: tuple[int, ...]) -> NDArray[np.float64]:
        shorter = self.distribution(context[1:]) if context else np.full(self.vocab_size, 1 / self.vocab_size)
        contexts, ends, tokens, counts = self._arrays[len(context)]
        key = 0
        for token in context:
            key = key * self.vocab_size + token
        row = int(np.searchsorted(contexts, key))
        if row == len(contexts) or contexts[row] != key:
            return shorter
        entries = slice(ends[row - 1] if row else 0, ends[row])
        types, total = len(tokens[entries]), counts[entries].sum()
        probabilities = shorter * (types / (total + types))
        probabilities[tokens[entries]] += counts[entries] / (total + types)
        return probabilities

    def save(self, path: Path) -> None:
        """Writes a safetensors file. Raises `OSError` if this is not possible."""
        with atomic_write(path) as file:
            file.write(to_bytes(self.tensors()))

    @classmethod
    def load(cls, path: Path, vocab_size: int) -> "NGramModel":
        """Reads a file of `save`. Raises `ValueError` if it is damaged or unreadable."""
        try:
            with safe_open(path, "pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        except Exception as error:  # the header of an untrusted file can contain anything
            raise ValueError(f"{type(error).__name__}") from error
        return cls.from_tensors(tensors, vocab_size)

    def tensors(self) -> dict[str, Tensor]:
        """The tables by names, for a file."""
        return {
            f"{i}/{name}": getattr(table, name) for i, table in enumerate(self.tables) for name in ContextTable.FIELDS
        }

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor], vocab_size: int) -> "NGramModel":
        """The model of a file, which may be damaged or untrusted.

        Raises:
            ValueError: the tables are not those of a model with this vocabulary.
        """
        count = len(tensors) // len(ContextTable.FIELDS)
        if not count or count > MAX_CONTEXT + 1:
            raise ValueError("it has no tables, or too many")
        try:
            rows = [[tensors[f"{i}/{name}"] for name in ContextTable.FIELDS] for i in range(count)]
        except KeyError as error:
            raise ValueError(f"it has no {error}") from None
        for row in rows:
            _check(*row, vocab_size=vocab_size)
        return cls(vocab_size, [ContextTable(*row) for row in rows])


def _count_all(tokens_N: Tensor, vocab_size: int, context_length: int) -> list[ContextTable]:
    """The tables for contexts of 0 to `context_length` tokens. The n-grams are sorted once: an n-gram without its last
    token is a shorter one, in the same order."""
    size = len(tokens_N) - context_length
    ngrams_N = torch.zeros(size, dtype=torch.long)
    for offset in range(context_length + 1):
        ngrams_N = ngrams_N * vocab_size + tokens_N[offset : offset + size]
    ngrams_E, counts_E = ngrams_N.sort().values.unique_consecutive(return_counts=True)
    tables = []
    for length in reversed(range(context_length + 1)):
        contexts_K, types_K = (ngrams_E // vocab_size).unique_consecutive(return_counts=True)
        context_type = torch.int32 if vocab_size**length < 2**31 else torch.int64
        token_type = torch.uint8 if vocab_size <= 2**8 else torch.int16 if vocab_size <= 2**15 else torch.int32
        small_counts = counts_E.max() < 2**15
        tables.append(
            ContextTable(
                contexts_K.to(context_type),
                types_K.cumsum(0).to(torch.int32),
                (ngrams_E % vocab_size).to(token_type),
                counts_E.to(torch.int16 if small_counts else torch.int32),
            )
        )
        rows_E = torch.repeat_interleave(torch.arange(len(types_K)), types_K)
        ngrams_E, counts_E = contexts_K, torch.zeros_like(contexts_K).index_add_(0, rows_E, counts_E)
    return tables[::-1]


def _without_rare_contexts(table: ContextTable, max_bytes: int) -> ContextTable | None:
    """The contexts with the highest counts that fit; None if none does."""
    types_K = torch.diff(table.ends_K, prepend=table.ends_K.new_zeros(1)).long()
    rows_E = torch.repeat_interleave(torch.arange(len(types_K)), types_K)
    totals_K = torch.zeros(len(types_K), dtype=torch.long).index_add_(0, rows_E, table.counts_E.long())
    order_K = totals_K.argsort(descending=True, stable=True)
    entry_bytes = table.tokens_E.itemsize + table.counts_E.itemsize
    sizes_K = types_K[order_K] * entry_bytes + table.contexts_K.itemsize + table.ends_K.itemsize
    kept = int((sizes_K.cumsum(0) <= max_bytes).sum())
    if not kept:
        return None
    rows, _ = order_K[:kept].sort()
    is_kept_K = torch.zeros(len(types_K), dtype=torch.bool).index_fill(0, rows, True)
    entries = is_kept_K[rows_E]
    return ContextTable(
        table.contexts_K[rows],
        types_K[rows].cumsum(0).to(table.ends_K.dtype),
        table.tokens_E[entries],
        table.counts_E[entries],
    )


def _check(contexts: Tensor, ends: Tensor, tokens: Tensor, counts: Tensor, vocab_size: int) -> None:
    """Raises `ValueError` if the tensors do not fit together, so that no look-up in the table can fail."""
    for x in (contexts, ends, tokens, counts):
        if x.dim() != 1 or x.is_floating_point() or x.is_complex() or not len(x):
            raise ValueError("its tables have wrong shapes or types")
    if len(contexts) != len(ends) or len(tokens) != len(counts):
        raise ValueError("its tables have different lengths")
    ends, tokens, counts = ends.long(), tokens.long(), counts.long()
    types = torch.diff(ends, prepend=torch.zeros(1, dtype=torch.long))
    if not bool((types > 0).all()) or int(ends[-1]) != len(tokens):
        raise ValueError("its tables are inconsistent")
    if not bool(((tokens >= 0) & (tokens < vocab_size) & (counts > 0)).all()):
        raise ValueError("its tables are inconsistent with the vocabulary")
