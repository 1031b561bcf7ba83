"""A tokenizer: an object with `vocab_size`, `encode`, `decode`, `from_text` and `as_config`."""

import re

import torch
from torch import Tensor

from chargpt import UserError


class Words:
    """One token per word or number, and per other character."""

    def __init__(self, words: list[str]):
        self._words = words
        self._ids = {word: i for i, word in enumerate(words)}

    @classmethod
    def from_text(cls, text: str) -> "Words":
        return cls(sorted(set(_split(text))))

    @property
    def vocab_size(self) -> int:
        return len(self._words)

    def encode(self, text: str) -> Tensor:
        words = _split(text)
        if unknown := [word for word in words if word not in self._ids]:
            raise UserError(f"the word {unknown[0]!r} is not in the vocabulary of {self.vocab_size} words")
        return torch.tensor([self._ids[word] for word in words], dtype=torch.int32)

    def decode(self, tokens_N: Tensor) -> str:
        return "".join(self._words[i] for i in tokens_N.tolist())

    def as_config(self) -> dict:
        """What a checkpoint contains to build this tokenizer again."""
        return {"_target_": "my_code.tokenizer.Words", "words": self._words}


def _split(text: str) -> list[str]:
    return re.findall(r"\w+|\W", text)
