"""Labels tokens for figures: replaces invisible characters by symbols, and classifies characters."""

import unicodedata

from jaxtyping import Integer
from torch import Tensor

from chargpt.data.tokenizer import Tokenizer

SYMBOLS = {" ": "␣", "\n": "↵", "\r": "␍", "\t": "⇥", "\0": "␀"}


def make_visible(text: str) -> str:
    """Replaces each invisible character by a symbol."""
    return "".join(SYMBOLS.get(c) or (c if c.isprintable() and not c.isspace() else "�") for c in text)


def token_labels(tokens_N: Integer[Tensor, " N"], tokenizer: Tokenizer) -> list[str]:
    """Returns the visible text of each token."""
    return [make_visible(tokenizer.decode(token[None])) for token in tokens_N]


def character_class(text: str) -> str:
    """Classifies a token by its first visible character: vowel, consonant, capital, digit, space, punctuation or other.

    Vowels are a, e, i, o, u and their accented forms; letters of scripts without case are other.
    """
    character = text.strip()[:1]
    if not character:
        return "space"
    category = unicodedata.category(character)
    if category == "Ll":
        return "vowel" if unicodedata.normalize("NFD", character)[0] in "aeiou" else "consonant"
    names = {"Lu": "capital", "Lt": "capital", "Nd": "digit"}
    return names.get(category) or ("punctuation" if category[0] in "PS" else "other")
