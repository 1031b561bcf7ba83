"""Tests of the value mixers against their formulas, and of their use by the blocks."""

from functools import partial

import pytest
import torch
from torch import nn

from chargpt.model.block_context import BlockContext
from chargpt.model.value_residual import ValueEmbedding, ValueResidual


def new_context(tokens_BT):
    return BlockContext(tokens_BT, torch.zeros(*tokens_BT.shape, 12))


def test_a_value_residual_is_a_weighted_sum_of_a_blocks_and_the_first_blocks_values(tokens_BT):
    first, second = ValueResidual(11, 12), ValueResidual(11, 12)
    second.shares_2.data = torch.tensor([0.3, 2.0])
    one_BTC, two_BTC = torch.randn(3, 8, 12), torch.randn(3, 8, 12)
    context = new_context(tokens_BT)
    assert first(one_BTC, context).equal(one_BTC)  # 1/2 + 1/2 of the same values
    torch.testing.assert_close(second(two_BTC, context), 0.3 * two_BTC + 2 * one_BTC)


def test_a_value_embedding_adds_a_row_of_its_table_times_its_share(tokens_BT):
    mixer = ValueEmbedding(11, 12, share=0.25)
    values_BTC = torch.randn(3, 8, 12)
    mixed_BTC = mixer(values_BTC, new_context(tokens_BT))
    for b, t in ((0, 0), (1, 7), (2, 3)):
        row_C = mixer.embedding.weight[tokens_BT[b, t]]
        torch.testing.assert_close(mixed_BTC[b, t], values_BTC[b, t] + 0.25 * row_C)


@pytest.mark.parametrize("value_mixer", [ValueResidual, ValueEmbedding])
def test_each_block_passes_its_values_through_its_value_mixer(small, tokens_BT, value_mixer):
    model = small(value_residual=value_mixer, n_layer=3)
    for mixer in model.value_residual:
        for parameter in mixer.parameters():
            nn.init.normal_(parameter)
    projected, mixer_inputs = [], []
    for block, mixer in zip(model.blocks, model.value_residual, strict=True):
        block.attention.qkv_proj.register_forward_hook(lambda _, __, out: projected.append(out[..., 24:]))
        mixer.register_forward_hook(lambda _, inputs, __: mixer_inputs.append(inputs[0]))
    logits_BTV = model(tokens_BT)
    assert all(input_BTC.equal(v_BTC) for input_BTC, v_BTC in zip(mixer_inputs, projected, strict=True))
    plain = small(n_layer=3)
    plain.load_state_dict(model.state_dict(), strict=False)
    assert (plain(tokens_BT) - logits_BTV).abs().max() > 1e-3
    logits_BTV.square().sum().backward()
    assert all(p.grad.any() for p in model.value_residual.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("value_mixer", [ValueResidual, partial(ValueEmbedding, std=0.1)])
def test_the_type_of_the_values_is_preserved(tokens_BT, value_mixer, dtype):
    mixer = value_mixer(11, 12)
    assert mixer(torch.randn(3, 8, 12, dtype=dtype), new_context(tokens_BT)).dtype == dtype


def test_the_gradient_of_the_table_is_summed_in_float32_for_bfloat16_values():
    """In bfloat16 a sum of ones stops at 256."""
    mixer, tokens_BT = ValueEmbedding(11, 12, share=1.0), torch.zeros(4, 500, dtype=torch.long)
    mixer(torch.zeros(4, 500, 12, dtype=torch.bfloat16), new_context(tokens_BT)).sum().backward()
    torch.testing.assert_close(mixer.embedding.weight.grad[0], torch.full((12,), 2000.0))
