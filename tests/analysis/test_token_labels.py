"""Labels show every character visibly, and every character has a class."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chargpt.analysis.token_labels import character_class, make_visible, token_labels
from chargpt.data.tokenizer import CharTokenizer


def test_spaces_and_line_breaks_are_visible():
    assert make_visible("O Romeo,\n\tO\r\0") == "O␣Romeo,↵⇥O␍␀"


@given(st.text())
def test_each_character_becomes_one_visible_character(text):
    visible = make_visible(text)
    assert len(visible) == len(text)
    assert all(unicodedata.category(c)[0] not in "CZ" for c in visible)


def test_labels_follow_the_order_of_the_tokens():
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
def test_characters_have_the_expected_class(characters, expected):
    assert {character_class(c) for c in characters} == {expected}


@given(st.text())
def test_every_token_has_a_class(text):
    classes = {"vowel", "consonant", "capital", "digit", "space", "punctuation", "other"}
    assert character_class(text) in classes
