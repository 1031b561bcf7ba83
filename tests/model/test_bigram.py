"""Tests of the bigram model: a table, its initial loss, and no KV cache."""

import math

import pytest
import torch

from chargpt.errors import UserError
from chargpt.model.bigram import Bigram
from chargpt.model.loss import cross_entropy


def test_logits_are_the_row_of_the_last_token():
    model = Bigram(7)
    tokens_BT = torch.tensor([[0, 6, 3], [3, 3, 1]])
    logits_BTV = model(tokens_BT)
    assert logits_BTV.shape == (2, 3, 7)
    for b in range(2):
        for t in range(3):
            assert logits_BTV[b, t].equal(model.table.weight[tokens_BT[b, t]])


@pytest.mark.parametrize("std", [1.0, 0.02])
def test_the_table_has_the_requested_initial_std(std):
    weight = Bigram(65, std=std).table.weight
    assert weight.std().item() == pytest.approx(std, rel=0.05)
    assert abs(weight.mean().item()) < 0.06 * std


def test_a_zero_table_has_the_loss_of_a_uniform_prediction():
    tokens_BT = torch.randint(65, (2, 8))
    loss = cross_entropy(Bigram(65, std=0.0)(tokens_BT), tokens_BT)
    assert loss.item() == pytest.approx(math.log(65), abs=1e-6)


def test_the_lectures_initial_loss_is_above_that_of_a_uniform_prediction():
    torch.manual_seed(0)
    tokens_V = torch.arange(65)
    pairs = torch.cartesian_prod(tokens_V, tokens_V)
    loss = cross_entropy(Bigram(65)(pairs[:, :1]), pairs[:, 1:])
    # Over all pairs: E log(sum of exp) - E logit, which is about ln V + 1/2 for N(0, 1) logits.
    assert loss.item() == pytest.approx(math.log(65) + 0.5, abs=0.05)


def test_a_negative_std_is_a_user_error():
    with pytest.raises(UserError, match=r"std=-1\.0"):
        Bigram(65, std=-1.0)


def test_the_model_is_one_table_without_a_cache():
    model = Bigram(65, block_size=8)
    assert model.parameter_count() == 65 * 65
    assert model.flops_per_token() == 0
    assert (model.vocab_size, model.block_size) == (65, 8)
    assert model.new_cache(2) is None


def test_the_input_may_be_longer_than_the_training_blocks():
    assert Bigram(7, block_size=2)(torch.zeros(1, 50, dtype=torch.int64)).shape == (1, 50, 7)


def test_the_bigram_config_builds_the_lectures_model(composed):
    model = composed("model=bigram")
    assert isinstance(model, Bigram)
    assert model.parameter_count() == 4225
