"""Plain data, and what is none."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from chargpt.checkpoint.plain_data import find_non_plain

LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text().filter(lambda text: "${" not in text)
PLAIN = st.recursive(LEAVES, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20)


@given(PLAIN)
def test_what_json_can_say_is_plain(value):
    assert find_non_plain(value, "config") == ""


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ({"a": [{"b": torch.zeros(1)}]}, "config.a[0].b is a Tensor"),
        ({"a": {3: 1}}, "config.a has the key 3"),
        ({"a": "x${oc.env:HOME}"}, "config.a='x${oc.env:HOME}' is to be looked up"),
        ({"a": (1, 2)}, "config.a is a tuple"),
        (b"bytes", "config is a bytes"),
    ],
)
def test_what_is_not_is_told_with_its_place(value, told):
    assert find_non_plain(value, "config").startswith(told)


def test_a_vocabulary_may_have_any_characters():
    assert find_non_plain({"characters": "${}"}, "tokenizer") == ""


def test_what_holds_itself_is_not_plain():
    endless: list = []
    endless.append(endless)
    assert find_non_plain(endless, "config") == "config has no bottom"
