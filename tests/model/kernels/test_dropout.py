"""Tests of dropout: fraction of zeros, mean, and gradient."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from chargpt.model.kernels.dropout import dropout, keep_mask, vector_dropout

N = 200_000


@pytest.mark.parametrize("p", [0.01, 0.1, 0.2, 0.5, 0.9])
def test_dropout_zeroes_the_fraction_p_and_preserves_the_mean(p):
    torch.manual_seed(0)
    y = dropout(torch.ones(N), p, training=True)
    assert ((y == 0).float().mean() - p).abs() < 5 * (p * (1 - p) / N) ** 0.5
    torch.testing.assert_close(y[y != 0], torch.full_like(y[y != 0], 1 / (1 - p)), rtol=2e-4, atol=0)


@pytest.mark.parametrize("p", [0.001, 0.2, 0.999])
def test_the_scale_is_exact_for_the_rounded_probability(p):
    torch.manual_seed(0)
    keep, scale = keep_mask((7, 100_003), p)
    assert keep.shape == (7, 100_003) and keep.dtype == torch.bool
    assert abs(1 - 1 / scale - p) <= 0.5 / 65536


def test_adjacent_elements_are_dropped_independently():
    torch.manual_seed(0)
    keep, _ = keep_mask((N,), 0.5)
    for lag in (1, 2, 3, 4, 8):  # four elements share one random number
        fraction = (keep[lag:] & keep[:-lag]).float().mean()
        assert (fraction - 0.25).abs() < 5 * (0.25 * 0.75 / N) ** 0.5


def test_the_gradient_uses_the_mask_of_the_forward_pass():
    torch.manual_seed(0)
    x = torch.randn(50, 7, requires_grad=True)
    y = dropout(x, 0.3, training=True)
    y.backward(torch.ones_like(y))
    torch.testing.assert_close(x.grad * x, y)


def test_the_mask_depends_on_torchs_seed():
    draws = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        draws.append(dropout(torch.ones(100), 0.5, training=True))
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 5), max_size=4))
def test_dropout_preserves_any_shape(shape):
    assert dropout(torch.ones(shape), 0.5, training=True).shape == torch.Size(shape)


def test_in_evaluation_or_with_p_zero_the_input_is_returned():
    x = torch.ones(5)
    assert dropout(x, 0.5, training=False) is x
    assert dropout(x, 0.0, training=True) is x
    x_BTC = torch.ones(2, 3, 4)
    assert vector_dropout(x_BTC, 0.5, training=False) is x_BTC
    assert vector_dropout(x_BTC, 0.0, training=True) is x_BTC


def test_vector_dropout_zeroes_complete_vectors_and_preserves_the_mean():
    torch.manual_seed(0)
    x_BTC = torch.randn(50, 400, 3, requires_grad=True)
    y_BTC = vector_dropout(x_BTC, 0.3, training=True)
    kept_BT = (y_BTC != 0).any(dim=-1)
    assert ((~kept_BT).float().mean() - 0.3).abs() < 5 * (0.3 * 0.7 / kept_BT.numel()) ** 0.5
    torch.testing.assert_close(y_BTC, x_BTC * kept_BT[..., None] / 0.7, rtol=2e-4, atol=0)
    y_BTC.sum().backward()
    torch.testing.assert_close(x_BTC.grad * x_BTC, y_BTC)
