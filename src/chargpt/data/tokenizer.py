"""The tokenizer protocol, and the lecture's character tokenizer."""

import difflib
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Integer
from torch import Tensor

from chargpt.errors import UserError, describe_error

_CODE_POINTS = 0x110000
_CHUNK = 1 << 24  # characters encoded at a time: limits the UTF-32 copy to 64 MB


@runtime_checkable
class Tokenizer(Protocol):
    """The interface of a tokenizer of characters or subwords."""

    @property
    def vocab_size(self) -> int: ...

    def encode(self, text: str) -> Integer[Tensor, " N"]:
        """The token ids of `text`. Raises `UserError` if the vocabulary cannot represent it."""
        ...

    def decode(self, tokens_N: Integer[Tensor, " N"]) -> str:
        """The text of the tokens: the inverse of `encode`."""
        ...

    def as_config(self) -> dict:
        """Plain data (`_target_` and arguments) from which `chargpt.config.instantiate` builds the same tokenizer."""
        ...

    @classmethod
    def from_text(cls, text: str) -> "Tokenizer":
        """Builds a tokenizer with the vocabulary of `text`."""
        ...


def encode(tokenizer: Tokenizer, text: str) -> Integer[Tensor, " N"]:
    """The tokens of a text, checked: the tokenizer may be the user's.

    Raises:
        UserError: they are not a tensor of token ids below `vocab_size`.
    """
    name = type(tokenizer).__name__
    try:
        tokens_N = tokenizer.encode(text)
    except UserError:
        raise
    except Exception as error:  # the user's code may raise anything
        reason = describe_error(error)
        raise UserError(f"the tokenizer {name} cannot encode this text ({reason})") from error
    if not isinstance(tokens_N, Tensor) or tokens_N.ndim != 1 or tokens_N.is_floating_point():
        raise UserError(f"tokenizer: {name}.encode must return a 1-D tensor of integers")
    low, high = (tokens_N.min().item(), tokens_N.max().item()) if len(tokens_N) else (0, 0)
    V = tokenizer.vocab_size
    if low < 0 or high >= V:
        raise UserError(f"tokenizer: {name}.encode returns tokens from {low} to {high}; its vocab_size is {V}")
    return tokens_N


class CharTokenizer:
    """One token per character, numbered in sorted order, as in the lecture.

    Args:
        characters: the vocabulary, each character once, sorted by code point.
    """

    def __init__(self, characters: str):
        self.characters = characters
        self._codes_V = _code_points(characters)
        if not len(characters) or np.any(np.diff(self._codes_V.astype(np.int64)) <= 0):
            raise UserError("the vocabulary of a CharTokenizer must consist of distinct characters in sorted order")
        self._dtype = torch.uint8 if self.vocab_size <= 2**8 else torch.int32
        # Maps each code point up to the largest of the vocabulary to its token id, or to -1.
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
        """The token ids, as uint8 if they fit, otherwise as int32.

        Raises:
            UserError: a character is not in the vocabulary; the message names the first one.
        """
        tokens_N = torch.empty(len(text), dtype=self._dtype)
        for start in range(0, len(text), _CHUNK):
            codes = _code_points(text[start : start + _CHUNK])
            ids = self._lookup[np.minimum(codes, len(self._lookup) - 1)]
            if (unknown := np.flatnonzero(ids < 0)).size:
                position = start + int(unknown[0])
                raise UserError(self._unknown_message(text, position))
            tokens_N[start : start + len(codes)] = torch.from_numpy(ids)
        return tokens_N

    def decode(self, tokens_N: Integer[Tensor, " N"]) -> str:
        return _characters(self._codes_V[tokens_N.cpu().numpy()])

    def as_config(self) -> dict:
        return {"_target_": "chargpt.data.tokenizer.CharTokenizer", "characters": self.characters}

    def _unknown_message(self, text: str, position: int) -> str:
        character = text[position]
        similar = [c for c in self.characters if c.lower() == character.lower()]
        similar += difflib.get_close_matches(character, self.characters, n=1)
        hint = f"; the vocabulary has {similar[0]!r}" if similar else ""
        if text[position : position + 2] in (r"\n", r"\t", r"\r"):  # typed in a shell, which does not interpret it
            hint += "; to type a line break or tab, use $'...' in bash, or put the text in a file: prompt=@FILE"
        if character == "\r":
            hint += "; it is part of each line break of Windows: remove it, for example with tr -d '\\r'"
        shown = self.characters if self.vocab_size <= 100 else self.characters[:100] + "..."
        return (
            f"the character {character!r} (U+{ord(character):04X}, position {position}) is not in the "
            f"vocabulary of {self.vocab_size} characters{hint}. Use only these: {shown!r}"
        )


def _code_points(text: str) -> np.ndarray:
    # surrogatepass: a prompt typed in a wrong locale may contain lone surrogates, which are reported as unknown
    # characters.
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")


def _characters(codes: np.ndarray) -> str:
    return codes.astype("<u4").tobytes().decode("utf-32-le", "surrogatepass")
