"""Characters in a picture: none is invisible, each is of a kind."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chargpt.analysis.token_labels import character_class, make_visible, token_labels
from chargpt.data.tokenizer import CharTokenizer


def test_spaces_and_line_breaks_are_visible():
    assert make_visible("O Romeo,\n\tO\r\0") == "O␣Romeo,↵⇥O␍␀"


@given(st.text())
def test_each_character_leaves_one_mark(text):
    shown = make_visible(text)
    assert len(shown) == len(text)
    assert all(unicodedata.category(c)[0] not in "CZ" for c in shown)


def test_labels_are_those_of_the_tokens_in_order():
    text = "What ho!\n"
    tokenizer = CharTokenizer.from_text(text)
    assert token_labels(tokenizer.encode(text), tokenizer) == list("What␣ho!↵")


@pytest.mark.parametrize(
    ("characters", "expected"),
    [
        ("aeiouéü", "vowel"),
        ("bcdxyzñß", "consonant"),
        ("AEXÉ", "capital"),
        ("07", "digit"),
        (" \n\t", "space"),
        ("!?;:',.-&$+«", "punctuation"),
        ("愛ا\x07", "other"),
    ],
)
def test_the_kind_of_a_character(characters, expected):
    assert {character_class(c) for c in characters} == {expected}


@given(st.text())
def test_every_token_is_of_some_kind(text):
    kinds = {"vowel", "consonant", "capital", "digit", "space", "punctuation", "other"}
    assert character_class(text) in kinds
