"""Values that are plain data, and values that are not."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from chargpt.checkpoint.plain_data import find_non_plain

LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text().filter(lambda text: "${" not in text)
PLAIN = st.recursive(LEAVES, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20)


@given(PLAIN)
def test_json_values_are_plain(value):
    assert find_non_plain(value, "config") == ""


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"a": [{"b": torch.zeros(1)}]}, "config.a[0].b is a Tensor"),
        ({"a": {3: 1}}, "config.a has the key 3"),
        ({"a": {0: 1}}, "config.a has the key 0"),
        ({"a": {None: 1}}, "config.a has the key None"),
        ({"a": "x${oc.env:HOME}"}, "config.a='x${oc.env:HOME}' is an interpolation"),
        ({"a": (1, 2)}, "config.a is a tuple"),
        (b"bytes", "config is a bytes"),
    ],
)
def test_values_that_are_not_plain_are_reported_with_their_path(value, message):
    assert find_non_plain(value, "config").startswith(message)


def test_a_vocabulary_may_contain_any_characters():
    assert find_non_plain({"characters": "${}"}, "tokenizer") == ""


def test_a_list_that_contains_itself_is_not_plain():
    recursive: list = []
    recursive.append(recursive)
    assert find_non_plain(recursive, "config") == "config is nested too deeply"
