"""Squared ReLU has the values and the gradients of its definition, to the last bit."""

import pytest
import torch
from torch.nn import functional as F

from chargpt.model.kernels.squared_relu import squared_relu


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values_and_gradients_are_those_of_autograd(dtype):
    draw = torch.Generator().manual_seed(0)
    x, dy = (torch.randn(50, 30, generator=draw).to(dtype) for _ in range(2))
    x[0] = 0
    x.requires_grad_()
    (actual, expected) = squared_relu(x), F.relu(x).square()
    assert torch.equal(actual, expected)
    assert torch.equal(*(torch.autograd.grad(y, x, dy)[0] for y in (actual, expected)))
