"""What is mixed into the values: the papers' sums, block by block, and the same with a cache."""

from functools import partial

import pytest
import torch
from torch import nn

from chargpt.model.block_context import BlockContext
from chargpt.model.value_residual import ValueEmbedding, ValueResidual


def context(tokens_BT):
    return BlockContext(tokens_BT, torch.zeros(*tokens_BT.shape, 12))


def test_a_value_residual_is_a_learned_sum_of_a_blocks_values_and_the_firsts(tokens_BT):
    first, second = ValueResidual(11, 12), ValueResidual(11, 12)
    second.shares_2.data = torch.tensor([0.3, 2.0])
    one_BTC, two_BTC = torch.randn(3, 8, 12), torch.randn(3, 8, 12)
    around = context(tokens_BT)
    assert first(one_BTC, around).equal(one_BTC)  # 1/2 of itself twice
    torch.testing.assert_close(second(two_BTC, around), 0.3 * two_BTC + 2 * one_BTC)


def test_a_value_embedding_is_a_row_of_its_table_times_its_share(tokens_BT):
    part = ValueEmbedding(11, 12, share=0.25)
    values_BTC = torch.randn(3, 8, 12)
    mixed_BTC = part(values_BTC, context(tokens_BT))
    for b, t in ((0, 0), (1, 7), (2, 3)):
        row_C = part.embedding.weight[tokens_BT[b, t]]
        torch.testing.assert_close(mixed_BTC[b, t], values_BTC[b, t] + 0.25 * row_C)


@pytest.mark.parametrize("values", [ValueResidual, ValueEmbedding])
def test_each_block_attends_to_what_its_own_part_makes_of_its_values(small, tokens_BT, values):
    model = small(value_residual=values, n_layer=3)
    for part in model.value_residual:
        for parameter in part.parameters():
            nn.init.normal_(parameter)
    seen, given = [], []
    for block, part in zip(model.blocks, model.value_residual, strict=True):
        block.attention.qkv_proj.register_forward_hook(lambda _, __, out: seen.append(out[..., 24:]))
        part.register_forward_hook(lambda _, inputs, __: given.append(inputs[0]))
    logits_BTV = model(tokens_BT)
    assert all(values_BTC.equal(own_BTC) for values_BTC, own_BTC in zip(given, seen, strict=True))
    plain = small(n_layer=3)
    plain.load_state_dict(model.state_dict(), strict=False)
    assert (plain(tokens_BT) - logits_BTV).abs().max() > 1e-3
    logits_BTV.square().sum().backward()
    assert all(p.grad.any() for p in model.value_residual.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("values", [ValueResidual, partial(ValueEmbedding, std=0.1)])
def test_values_keep_their_type(tokens_BT, values, dtype):
    part = values(11, 12)
    assert part(torch.randn(3, 8, 12, dtype=dtype), context(tokens_BT)).dtype == dtype


def test_the_gradient_of_a_table_is_summed_in_float32_also_for_values_of_16_bits():
    """In bfloat16 a sum of ones ends at 256."""
    part, tokens_BT = ValueEmbedding(11, 12, share=1.0), torch.zeros(4, 500, dtype=torch.long)
    part(torch.zeros(4, 500, 12, dtype=torch.bfloat16), context(tokens_BT)).sum().backward()
    torch.testing.assert_close(part.embedding.weight.grad[0], torch.full((12,), 2000.0))
