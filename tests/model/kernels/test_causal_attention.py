"""Tests of attention in blocks of queries: with dropout against explicit attention with the same mask, in bfloat16, and
when it is used."""

import pytest
import torch
from torch.nn import functional as F

from chargpt.model.attention import CausalSelfAttention
from chargpt.model.kernels import causal_attention as module
from chargpt.model.kernels.causal_attention import QUERY_BLOCK, causal_attention
from chargpt.model.kernels.cpu_dtypes import BFLOAT16, BFLOAT16_BLOCKS, FLOAT32, CPUDtypes, set_cpu_dtypes


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
    y = causal_attention(q, k, v, 0.3)
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
    causal_attention(q, k, v, 0.3)[:, :, 70].sum().backward()
    assert (k.grad[:, :, 71:] == 0).all() and (v.grad[:, :, 71:] == 0).all()
    assert (v.grad[:, :, :71] != 0).any(dim=-1).float().mean() > 0.5


def test_the_mean_of_a_layer_in_training_is_attention_without_dropout():
    torch.manual_seed(0)
    layer = CausalSelfAttention(16, 2, dropout=0.2, projection=False)
    x_BTC = torch.randn(1, 5, 16)
    with torch.no_grad():
        mean = torch.stack([layer(x_BTC) for _ in range(4000)]).mean(0)
        assert (mean - layer.eval()(x_BTC)).abs().max() < 0.1


# bfloat16


@pytest.fixture
def cpu_dtypes():
    """`cpu_dtypes("float32")` sets the type of attention under autocast."""
    yield lambda attention: set_cpu_dtypes(CPUDtypes(BFLOAT16, attention))
    set_cpu_dtypes(None)


@pytest.mark.parametrize("T", [1, 63, 64, 150])
def test_blocks_in_bfloat16_are_as_accurate_as_the_type(T, cpu_dtypes):
    cpu_dtypes(BFLOAT16_BLOCKS)
    q, k, v = qkv(T, D=16)
    dy = torch.randn(q.shape, generator=torch.Generator().manual_seed(1))
    y = causal_attention(q.bfloat16(), k.bfloat16(), v.bfloat16())
    exact = [x.detach().double().requires_grad_() for x in (q, k, v)]
    expected = F.scaled_dot_product_attention(*exact, is_causal=True)
    gradients = torch.autograd.grad(y, (q, k, v), dy.bfloat16())
    exact_gradients = torch.autograd.grad(expected, exact, dy.double())
    for actual, reference in zip((y, *gradients), (expected, *exact_gradients), strict=True):
        assert (actual - reference).norm() <= 0.01 * reference.norm() + 1e-6  # bfloat16 has 8 bits
    assert y.dtype == torch.bfloat16


def test_dropout_in_bfloat16_uses_the_same_blocks(masks):
    torch.manual_seed(0)
    q, k, v = (x.bfloat16() for x in qkv(100))
    actual = causal_attention(q, k, v, 0.3)
    assert len(masks) == 2
    torch.manual_seed(0)
    expected = causal_attention(q.float(), k.float(), v.float(), 0.3)
    torch.testing.assert_close(actual.float(), expected, atol=0.05, rtol=0.05)


def test_the_type_of_attention_is_the_measured_one(cpu_dtypes):
    q, k, v = (x.detach().bfloat16() for x in qkv(100))
    exact = q.float(), k.float(), v.float()
    fused, fused_float32 = (F.scaled_dot_product_attention(*x, is_causal=True) for x in ((q, k, v), exact))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(causal_attention(q, k, v), fused), "not measured: torch decides"
        cpu_dtypes(BFLOAT16)
        assert torch.equal(causal_attention(q, k, v), fused)
        cpu_dtypes(FLOAT32)
        assert torch.equal(causal_attention(q, k, v), fused_float32)
    cpu_dtypes(BFLOAT16_BLOCKS)
    assert torch.equal(causal_attention(*exact), fused_float32), "outside autocast"
