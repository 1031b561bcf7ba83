"""Tests that torch's undocumented operators on lists of tensors exist and equal the operators on single tensors."""

import pytest
import torch
from torch import Tensor

from chargpt.optim import foreach


def tensors(seed: int) -> list[Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=draw) for shape in [(3, 4), (5,), ()]]


@pytest.mark.parametrize(
    ("on_lists", "on_one"),
    [
        (lambda x, y: foreach.add_(x, 1), lambda x, y: x.add_(1)),
        (lambda x, y: foreach.add_(x, y, alpha=-0.3), lambda x, y: x.add_(y, alpha=-0.3)),
        (foreach.copy_, lambda x, y: x.copy_(y)),
        (lambda x, y: foreach.lerp_(x, y, 0.3), lambda x, y: x.lerp_(y, 0.3)),
        (lambda x, y: foreach.mul_(x, 0.3), lambda x, y: x.mul_(0.3)),
    ],
    ids=["add a number", "add", "copy", "lerp", "mul"],
)
def test_a_list_operator_equals_the_in_place_method_of_each_tensor(on_lists, on_one):
    actual, expected = tensors(0), tensors(0)
    on_lists(actual, tensors(1))
    for x, y in zip(expected, tensors(1), strict=True):
        on_one(x, y)
    assert all(map(torch.equal, actual, expected))


def test_lerp_returns_new_tensors():
    starts, ends = tensors(0), tensors(1)
    actual = foreach.lerp(starts, ends, 0.3)
    assert all(map(torch.equal, actual, map(torch.Tensor.lerp, starts, ends, [0.3] * 3)))
    assert all(map(torch.equal, starts, tensors(0)))
