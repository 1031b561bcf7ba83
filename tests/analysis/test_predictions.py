"""Predictions and attention weights, compared to the model applied to one prefix at a time."""

import pytest
import torch

from chargpt.analysis.predictions import attention_maps, log_probabilities
from chargpt.model.ensemble import Ensemble
from tests.inference.conftest import build_small_model
from tests.model.lecture import MultiHeadAttention

every_model = pytest.mark.parametrize("name", ["bigram", "Learned", "Rotary"])
TOKENS_T = torch.randint(11, (150,), generator=torch.Generator().manual_seed(0))


@every_model
@pytest.mark.parametrize("T", [1, 5, 8, 9, 150])
def test_each_row_is_the_prediction_after_a_cropped_prefix(name, T):
    model = build_small_model(name)
    actual_TV = log_probabilities(model, TOKENS_T[:T])
    assert actual_TV.shape == (T, 11)
    for t in range(T):
        prefix_T = TOKENS_T[max(0, t + 1 - 8) : t + 1]
        expected_V = model(prefix_T[None])[0, -1].log_softmax(-1)
        torch.testing.assert_close(actual_TV[t], expected_V, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["Learned", "Rotary"])
def test_attention_maps_have_one_tensor_per_layer_with_the_weights_of_each_head(name):
    maps = attention_maps(build_small_model(name), TOKENS_T[:7])
    assert [tuple(m.shape) for m in maps] == [(2, 7, 7)] * 2
    for map_HTT in maps:
        torch.testing.assert_close(map_HTT.sum(-1), torch.ones(2, 7))
        assert (map_HTT.triu(1) == 0).all()


def test_attention_maps_are_equal_to_the_heads_of_the_lecture():
    model = build_small_model("Learned")
    x_TC = model.token_embedding(TOKENS_T[:7]) + model.position.embedding(torch.arange(7))
    block = model.blocks[0]
    x_TC = block.attention_norm(x_TC)
    for head, actual_TT in zip(
        MultiHeadAttention(block.attention).heads, attention_maps(model, TOKENS_T[:7])[0], strict=True
    ):
        scores_TT = head.query(x_TC) @ head.key(x_TC).T / 8**0.5
        scores_TT = scores_TT.masked_fill(torch.tril(torch.ones(7, 7)) == 0, float("-inf"))
        torch.testing.assert_close(actual_TT, scores_TT.softmax(-1))


def test_attention_maps_of_an_ensemble_are_those_of_its_first_member():
    model = Ensemble(11, 8, 2, member=lambda vocab_size, block_size: build_small_model("Rotary")).eval()
    for expected_HTT, actual_HTT in zip(
        attention_maps(model.members[0], TOKENS_T[:7]), attention_maps(model, TOKENS_T[:7]), strict=True
    ):
        assert actual_HTT.equal(expected_HTT)


def test_a_bigram_model_has_no_attention_maps():
    assert attention_maps(build_small_model("bigram"), TOKENS_T[:7]) == []


def test_attention_maps_leave_the_model_unchanged():
    model = build_small_model("Learned")
    before = model(TOKENS_T[None, :8])
    attention_maps(model, TOKENS_T[:7])
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert model(TOKENS_T[None, :8]).equal(before)
