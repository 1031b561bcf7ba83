"""Tests of attention with dropout in blocks of queries, against explicit attention with the same mask."""

import pytest
import torch

from chargpt.model.attention import CausalSelfAttention
from chargpt.model.kernels import dropout_attention as module
from chargpt.model.kernels.dropout_attention import QUERY_BLOCK, dropout_attention


def qkv(T: int, D: int = 8) -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(T)
    return [torch.randn(2, 3, T, D, generator=draw, dtype=torch.float32).requires_grad_() for _ in range(3)]


@pytest.fixture
def masks(monkeypatch):
    """The generated masks, in order."""
    drawn, draw = [], module.keep_mask

    def keep_mask(shape, p):
        drawn.append(draw(shape, p))
        return drawn[-1]

    monkeypatch.setattr(module, "keep_mask", keep_mask)
    return drawn


@pytest.mark.parametrize("T", [1, 2, 63, 64, 65, 128, 150])
def test_output_and_gradients_equal_explicit_attention_with_the_same_mask(T, masks):
    torch.manual_seed(0)
    q, k, v = qkv(T)
    y = dropout_attention(q, k, v, 0.3)
    dy = torch.randn(y.shape)
    gradients = torch.autograd.grad(y, (q, k, v), dy)

    factor_TT = torch.zeros(6, T, T)
    for i, (keep_NRS, scale) in enumerate(masks):
        factor_TT[:, i * QUERY_BLOCK : i * QUERY_BLOCK + keep_NRS.shape[1], : keep_NRS.shape[2]] = keep_NRS * scale
    past_TT = torch.ones(T, T, dtype=torch.bool).tril()
    scores = (q @ k.transpose(2, 3) * 8**-0.5).masked_fill(~past_TT, -torch.inf)
    expected = (scores.softmax(-1) * factor_TT.view(2, 3, T, T)) @ v
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(gradients, torch.autograd.grad(expected, (q, k, v), dy))


def test_gradients_from_the_future_are_exactly_zero():
    torch.manual_seed(0)
    q, k, v = qkv(100)
    dropout_attention(q, k, v, 0.3)[:, :, 70].sum().backward()
    assert (k.grad[:, :, 71:] == 0).all() and (v.grad[:, :, 71:] == 0).all()
    assert (v.grad[:, :, :71] != 0).any(dim=-1).float().mean() > 0.5


def test_the_mean_of_a_layer_in_training_is_attention_without_dropout():
    torch.manual_seed(0)
    layer = CausalSelfAttention(16, 2, dropout=0.2, projection=False)
    x_BTC = torch.randn(1, 5, 16)
    with torch.no_grad():
        mean = torch.stack([layer(x_BTC) for _ in range(4000)]).mean(0)
        assert (mean - layer.eval()(x_BTC)).abs().max() < 0.1
