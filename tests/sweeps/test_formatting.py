"""The format of keys, values, FLOPs and paths."""

from pathlib import Path

import pytest

from chargpt.sweeps.formatting import flops_text, format_value, key_text, short_names, short_path
from chargpt.sweeps.swept_params import ABSENT


@pytest.mark.parametrize(
    ("names", "short"),
    [
        (["model.n_layer", "optimizer.lr"], ["n_layer", "lr"]),
        (["model.attention.bias", "model.norm.bias"], ["attention.bias", "norm.bias"]),
        (["model/feed_forward", "data/dataloader@data", "lecture"], ["feed_forward", "dataloader", "lecture"]),
        (["model.bias", "model.norm.bias"], ["model.bias", "norm.bias"]),
    ],
)
def test_names_are_as_short_as_possible(names, short):
    assert list(short_names(names).values()) == short


@pytest.mark.parametrize(("flops", "text"), [(1.234e15, "1.2e15"), (9.96e9, "1.0e10"), (5.0, "5.0e0"), (0.0, "0")])
def test_flops_are_rounded_to_two_digits(flops, text):
    assert flops_text(flops) == text


@pytest.mark.parametrize(
    ("value", "full", "short"),
    [
        (0.00012345678, "0.00012345678", "0.0001235"),
        (0.0, "0.0", "0"),
        (None, "null", "null"),
        (True, "true", "true"),
        ([0.9, None], "[0.9,null]", "[0.9,null]"),
        ("torch.nn.GELU", "torch.nn.GELU", "GELU"),
        ("my.book.txt", "my.book.txt", "my.book.txt"),
        (ABSENT, "", ""),
    ],
)
def test_values_have_the_syntax_of_overrides(value, full, short):
    assert format_value(value) == full
    assert key_text(value) == short


def test_a_path_that_is_not_utf_8_can_be_printed():
    assert short_path(Path("outputs/a b"), Path("outputs")) == "a b"
    short_path(Path("outputs/\udcff"), Path("outputs")).encode()
