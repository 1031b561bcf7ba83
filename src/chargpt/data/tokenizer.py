"""Text to token numbers and back: the protocol every tokenizer keeps, and the lecture's characters."""

import difflib
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Integer
from torch import Tensor

from chargpt.errors import UserError

_CODE_POINTS = 0x110000
_CHUNK = 1 << 24  # characters encoded at a time: bounds the UTF-32 copy to 64 MB


@runtime_checkable
class Tokenizer(Protocol):
    """What the bench asks of a tokenizer; subword tokenizers keep it as well."""

    @property
    def vocab_size(self) -> int: ...

    def encode(self, text: str) -> Integer[Tensor, " N"]:
        """Token numbers of `text`. Raises `UserError` where it cannot be said in this vocabulary."""
        ...

    def decode(self, tokens_N: Integer[Tensor, " N"]) -> str:
        """The text of the tokens: the inverse of `encode`."""
        ...

    def as_config(self) -> dict:
        """Plain data (`_target_` and arguments) from which `chargpt.config.instantiate` makes it again."""
        ...

    @classmethod
    def from_text(cls, text: str) -> "Tokenizer":
        """The tokenizer whose vocabulary is taken from `text`."""
        ...


class CharTokenizer:
    """One token a character, numbered in sorted order, as in the lecture.

    Args:
        characters: the vocabulary, each character once, sorted by code point.
    """

    def __init__(self, characters: str):
        self.characters = characters
        self._codes_V = _code_points(characters)
        if not len(characters) or np.any(np.diff(self._codes_V.astype(np.int64)) <= 0):
            raise UserError("the vocabulary of a CharTokenizer must be distinct characters in sorted order")
        self._dtype = torch.uint8 if self.vocab_size <= 2**8 else torch.int32
        # One look-up per character: position in the vocabulary, or -1. Sized by the largest character in use.
        self._lookup = np.full(int(self._codes_V[-1]) + 2, -1, dtype=np.int32)
        self._lookup[self._codes_V] = np.arange(self.vocab_size, dtype=np.int32)

    @classmethod
    def from_text(cls, text: str) -> "CharTokenizer":
        seen = np.zeros(_CODE_POINTS, dtype=bool)
        for start in range(0, len(text), _CHUNK):
            seen[_code_points(text[start : start + _CHUNK])] = True
        return cls(_characters(np.flatnonzero(seen)))

    @property
    def vocab_size(self) -> int:
        return len(self.characters)

    def encode(self, text: str) -> Integer[Tensor, " N"]:
        """Token numbers, in the smallest type that holds them.

        Raises:
            UserError: names the first character that the vocabulary does not have.
        """
        tokens_N = torch.empty(len(text), dtype=self._dtype)
        for start in range(0, len(text), _CHUNK):
            codes = _code_points(text[start : start + _CHUNK])
            found = self._lookup[np.minimum(codes, len(self._lookup) - 1)]
            if (missing := np.flatnonzero(found < 0)).size:
                position = start + int(missing[0])
                raise UserError(self._unknown(text[position], position))
            tokens_N[start : start + len(codes)] = torch.from_numpy(found)
        return tokens_N

    def decode(self, tokens_N: Integer[Tensor, " N"]) -> str:
        return _characters(self._codes_V[tokens_N.cpu().numpy()])

    def as_config(self) -> dict:
        return {"_target_": "chargpt.data.tokenizer.CharTokenizer", "characters": self.characters}

    def _unknown(self, character: str, position: int) -> str:
        near = [c for c in self.characters if c.lower() == character.lower()]
        near += difflib.get_close_matches(character, self.characters, n=1)
        hint = f"; the vocabulary has {near[0]!r}" if near else ""
        shown = self.characters if self.vocab_size <= 100 else self.characters[:100] + "..."
        return (
            f"the character {character!r} (U+{ord(character):04X}, position {position}) is not in the "
            f"vocabulary of {self.vocab_size} characters{hint}. Use only these: {shown!r}"
        )


def _code_points(text: str) -> np.ndarray:
    # surrogatepass: a prompt typed in a broken locale may hold lone surrogates; they are unknown characters
    # like any other, not a crash.
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")


def _characters(codes: np.ndarray) -> str:
    return codes.astype("<u4").tobytes().decode("utf-32-le", "surrogatepass")
