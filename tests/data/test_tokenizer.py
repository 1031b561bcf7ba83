"""Tests of the character tokenizer: exact round trips, and messages that name unknown characters."""

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from chargpt.config.instantiate import instantiate
from chargpt.data import tokenizer as tokenizers
from chargpt.data.tokenizer import CharTokenizer, Tokenizer
from chargpt.errors import UserError

UNUSUAL = "\0\r\n\n\r\ttab \x85\u2028 naïve e\u0301 ﬁ 𝄞 😀👨‍👩‍👧 \U0010ffff\ufeff"


@settings(max_examples=60, deadline=None)
@given(st.text(min_size=1))
def test_decode_is_the_inverse_of_encode_for_any_text(text):
    tokenizer = CharTokenizer.from_text(text)
    assert tokenizer.decode(tokenizer.encode(text)) == text


@settings(max_examples=60, deadline=None)
@given(st.text(min_size=1), st.lists(st.integers(0, 10**6)))
def test_encode_is_the_inverse_of_decode_for_any_tokens(text, numbers):
    tokenizer = CharTokenizer.from_text(text)
    tokens_N = torch.tensor([n % tokenizer.vocab_size for n in numbers], dtype=torch.int64)
    assert tokenizer.encode(tokenizer.decode(tokens_N)).tolist() == tokens_N.tolist()


@settings(max_examples=60, deadline=None)
@given(st.text(min_size=1))
def test_the_vocabulary_is_that_of_the_lecture(text):
    chars = sorted(set(text))
    stoi = {ch: i for i, ch in enumerate(chars)}
    tokenizer = CharTokenizer.from_text(text)
    assert tokenizer.characters == "".join(chars)
    assert tokenizer.vocab_size == len(chars)
    assert tokenizer.encode(text).tolist() == [stoi[c] for c in text]


@pytest.mark.parametrize("text", [UNUSUAL, "a", "\0", "\U0010ffff", "a\r\nb\rc\n"])
def test_unusual_characters_are_decoded_unchanged(text):
    tokenizer = CharTokenizer.from_text(text)
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_the_empty_text_has_no_tokens():
    tokenizer = CharTokenizer.from_text("ab")
    assert tokenizer.encode("").shape == (0,)
    assert tokenizer.decode(torch.empty(0, dtype=torch.int64)) == ""


@pytest.mark.parametrize("characters", ["", "ba", "aa", "abca"])
def test_a_vocabulary_must_consist_of_distinct_sorted_characters(characters):
    with pytest.raises(UserError, match="sorted"):
        CharTokenizer(characters)


@pytest.mark.parametrize("unknown", ["Z", "é", "\n", "😀", "\0", "\U0010ffff"])
def test_the_message_names_an_unknown_character_and_its_position(unknown):
    tokenizer = CharTokenizer("abcz")
    with pytest.raises(UserError) as error:
        tokenizer.encode(f"abc{unknown}ab")
    message = str(error.value)
    assert repr(unknown) in message
    assert f"U+{ord(unknown):04X}" in message
    assert "position 3" in message
    assert "abcz" in message
    assert "\n" not in message


def test_the_message_names_the_first_of_several_unknown_characters():
    with pytest.raises(UserError, match=r"'X' .*position 1\)"):
        CharTokenizer("ab").encode("aXbYX")


def test_the_message_suggests_the_letter_in_the_other_case():
    with pytest.raises(UserError, match="has 'z'"):
        CharTokenizer("abcz").encode("Z")


def test_a_lone_surrogate_is_an_unknown_character():
    with pytest.raises(UserError, match="U\\+DC80"):
        CharTokenizer("ab").encode(b"a\x80b".decode("utf-8", "surrogateescape"))


def test_the_message_shows_only_a_part_of_a_large_vocabulary():
    tokenizer = CharTokenizer("".join(map(chr, range(0x4E00, 0x4E00 + 5000))))
    with pytest.raises(UserError) as error:
        tokenizer.encode("a")
    assert len(str(error.value)) < 500


@pytest.mark.parametrize("size", [1, 2, 65, 256, 257, 40_000])
def test_vocabularies_of_any_size_are_decoded_unchanged(size):
    characters = "".join(map(chr, range(0x10000, 0x10000 + size)))
    tokenizer = CharTokenizer(characters)
    tokens_N = tokenizer.encode(characters)
    assert tokens_N.tolist() == list(range(size))
    assert tokenizer.decode(tokens_N) == characters


def test_small_vocabularies_use_uint8_and_large_ones_int32():
    characters = "".join(map(chr, range(257)))
    assert CharTokenizer(characters[:256]).encode("a").dtype == torch.uint8
    assert CharTokenizer(characters).encode("a").dtype == torch.int32


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_tokens_of_any_integer_type_are_decoded(dtype):
    assert CharTokenizer("abc").decode(torch.tensor([2, 0, 1], dtype=dtype)) == "cab"


@pytest.mark.parametrize("text", [UNUSUAL, "".join(map(chr, range(0x400, 0x400 + 300))), "'\"${x}\\"])
def test_the_config_builds_an_equal_tokenizer(text):
    tokenizer = CharTokenizer.from_text(text)
    rebuilt = instantiate(tokenizer.as_config())
    assert isinstance(rebuilt, CharTokenizer)
    assert rebuilt.characters == tokenizer.characters
    assert rebuilt.encode(text).equal(tokenizer.encode(text))


def test_the_char_tokenizer_implements_the_protocol():
    assert isinstance(CharTokenizer("ab"), Tokenizer)


def test_the_chunk_size_does_not_change_the_encoding(monkeypatch):
    text = "".join(random.Random(0).choices("abcdef", k=97)) + "only at the end: é😀"
    unchunked = CharTokenizer.from_text(text)
    for chunk in (1, 7, 16, len(text) - 1, len(text)):
        monkeypatch.setattr(tokenizers, "_CHUNK", chunk)
        chunked = CharTokenizer.from_text(text)
        assert chunked.characters == unchunked.characters
        assert chunked.encode(text).tolist() == [unchunked.characters.index(c) for c in text]
        with pytest.raises(UserError, match=f"position {len(text)}"):
            chunked.encode(text + "Ω")


def test_twenty_million_characters_are_encoded_correctly(text):
    times = 20_000_000 // len(text) + 1
    tokenizer = CharTokenizer.from_text(text * times)
    assert tokenizer.characters == "".join(sorted(set(text)))
    tokens_N = tokenizer.encode(text * times)
    once_N = torch.tensor([tokenizer.characters.index(c) for c in text], dtype=tokens_N.dtype)
    assert tokens_N.view(times, -1).eq(once_N).all()


@pytest.mark.parametrize("typed", [r"one\ntwo", r"\tone", r"one\r"])
def test_the_message_explains_a_line_break_that_was_typed_as_two_characters(typed):
    with pytest.raises(UserError, match=r"to type a line break or tab, use \$'\.\.\.' in bash"):
        CharTokenizer("enotw").encode(typed)


def test_the_message_explains_a_carriage_return():
    with pytest.raises(UserError, match="part of each line break of Windows"):
        CharTokenizer("\nabc").encode("abc\r\n")
