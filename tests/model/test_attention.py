"""Tests of causal self-attention: equality with the lecture's heads, causality, KV cache, and dropout."""

import re
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from chargpt.errors import UserError
from chargpt.model.attention import CausalSelfAttention, LayerKVCache
from chargpt.model.block_context import BlockContext
from chargpt.model.position import Rotary
from tests.model.lecture import MultiHeadAttention


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("n_head", [1, 2, 3, 4, 6, 12])
@pytest.mark.parametrize("projection", [True, False])
@pytest.mark.parametrize("qkv_bias", [True, False])
def test_attention_equals_the_lectures_concatenated_heads(n_head, projection, qkv_bias):
    torch.manual_seed(0)
    attention = CausalSelfAttention(12, n_head, projection=projection, qkv_bias=qkv_bias)
    x_BTC = 3 * noise(2, 7, 12)
    torch.testing.assert_close(attention(x_BTC), MultiHeadAttention(attention)(x_BTC), atol=1e-5, rtol=1e-5)


def test_the_bias_of_the_projection_is_optional():
    assert CausalSelfAttention(12, 3, projection_bias=False).out_proj.bias is None
    assert CausalSelfAttention(12, 3).out_proj.bias is not None


@pytest.mark.parametrize("t", range(6))
def test_gradients_from_the_future_are_exactly_zero(t):
    torch.manual_seed(0)
    attention = CausalSelfAttention(12, 3)
    x_BTC = noise(2, 6, 12).requires_grad_()
    attention(x_BTC)[:, t].square().sum().backward()
    assert (x_BTC.grad[:, t + 1 :] == 0).all()
    assert (x_BTC.grad[:, : t + 1] != 0).any(dim=-1).all()


@pytest.mark.parametrize("norm", [nn.RMSNorm, partial(nn.LayerNorm, elementwise_affine=False)])
def test_qk_norm_is_applied_to_each_head(norm):
    torch.manual_seed(0)
    attention = CausalSelfAttention(12, 3, qk_norm=norm)
    x_BTC = 3 * noise(2, 6, 12)
    q_BTC, k_BTC, v_BTC = attention.qkv_proj(x_BTC).split(12, dim=-1)
    heads = []
    for h in range(3):
        channels = slice(4 * h, 4 * h + 4)
        q_BTD, k_BTD = norm(4)(q_BTC[..., channels]), norm(4)(k_BTC[..., channels])
        scores_BTT = (q_BTD @ k_BTD.mT / 2).masked_fill(torch.ones(6, 6).triu(1) == 1, -torch.inf)
        torch.testing.assert_close(attention.attention_weights(x_BTC)[:, h], scores_BTT.softmax(-1))
        heads.append(scores_BTT.softmax(-1) @ v_BTC[..., channels])
    torch.testing.assert_close(attention(x_BTC), attention.out_proj(torch.cat(heads, dim=-1)))


def fresh_cache(B: int, H: int, T: int, D: int) -> LayerKVCache:
    """A cache in uninitialized memory, as a model creates it; NaN makes any use of it visible."""
    return LayerKVCache(torch.full((2, B, H, T, D), torch.nan))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 4), min_size=1, max_size=5))
def test_a_cache_filled_in_any_chunks_does_not_change_the_output(chunks):
    torch.manual_seed(0)
    attention = CausalSelfAttention(12, 3)
    x_BTC = noise(2, sum(chunks), 12)
    cache = fresh_cache(2, 3, sum(chunks) + 1, 4)
    pieces = [attention(piece, cache=cache) for piece in x_BTC.split(chunks, dim=1)]
    assert cache.length == sum(chunks)
    torch.testing.assert_close(torch.cat(pieces, dim=1), attention(x_BTC), atol=1e-5, rtol=1e-5)


def test_dropout_applies_to_weights_and_output_in_training_only():
    torch.manual_seed(0)
    attention = CausalSelfAttention(64, 4, dropout=0.25)
    x_BTC = noise(8, 16, 64)
    dropped_BTC = attention(x_BTC)
    assert not dropped_BTC.equal(attention(x_BTC))
    undropped_BTC = attention.eval()(x_BTC)
    assert undropped_BTC.equal(attention(x_BTC))
    assert (dropped_BTC == 0).float().mean().item() == pytest.approx(0.25, abs=0.03)
    kept = dropped_BTC != 0
    # With dropout on the output only, the kept elements would be 1 / (1 - p) times the undropped ones.
    assert (dropped_BTC[kept] - undropped_BTC[kept] / 0.75).abs().mean() > 0.01


def test_with_dropout_zero_training_and_evaluation_are_equal():
    attention = CausalSelfAttention(12, 3, dropout=0.0)
    x_BTC = noise(2, 6, 12)
    assert attention.train()(x_BTC).equal(attention.eval()(x_BTC))


@pytest.mark.parametrize(("n_embd", "n_head"), [(130, 4), (384, 5), (4, 8), (7, 2), (1, 3)])
def test_the_message_about_an_invalid_number_of_heads_suggests_valid_sizes(n_embd, n_head):
    with pytest.raises(UserError) as error:
        CausalSelfAttention(n_embd, n_head)
    message = str(error.value)
    assert f"n_head={n_head}" in message
    assert f"n_embd={n_embd}" in message
    channels, heads = re.fullmatch(r".*use n_embd=(.*), or n_head from \[(.*)\]", message).groups()
    for proposed in channels.split(" or "):
        CausalSelfAttention(int(proposed), n_head)
    for proposed in heads.split(", "):
        CausalSelfAttention(n_embd, int(proposed))


@settings(max_examples=30, deadline=None)
@given(T=st.integers(1, 9), n_head=st.sampled_from([1, 2, 3, 6]), rotary=st.booleans(), seed=st.integers(0, 99))
def test_attention_weights_equal_those_of_the_fused_attention(T, n_head, rotary, seed):
    torch.manual_seed(seed)
    attention = CausalSelfAttention(12, n_head, projection=False)
    x_BTC = 3 * noise(2, T, 12, seed=seed)
    rotation = Rotary(9, 12, 12 // n_head).rotation(torch.arange(T)) if rotary else None
    context = BlockContext(torch.zeros(2, T).long(), x_BTC, rotation)
    weights_BHTT = attention.attention_weights(x_BTC, rotation)
    torch.testing.assert_close(weights_BHTT.sum(-1), torch.ones(2, n_head, T))
    assert (weights_BHTT.triu(1) == 0).all()
    values_BTC = attention.qkv_proj(x_BTC)[..., 24:]
    values_BHTD = values_BTC.unflatten(-1, (n_head, -1)).transpose(1, 2)
    expected_BTC = (weights_BHTT @ values_BHTD).transpose(1, 2).flatten(-2)
    torch.testing.assert_close(attention(x_BTC, context), expected_BTC, atol=1e-5, rtol=1e-5)
