"""The lecture's first model: a table, its loss at the start, and no memory."""

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
def test_the_table_starts_with_the_spread_that_was_asked_for(std):
    weight = Bigram(65, std=std).table.weight
    assert weight.std().item() == pytest.approx(std, rel=0.05)
    assert abs(weight.mean().item()) < 0.06 * std


def test_an_even_table_starts_at_the_loss_of_guessing():
    tokens_BT = torch.randint(65, (2, 8))
    loss = cross_entropy(Bigram(65, std=0.0)(tokens_BT), tokens_BT)
    assert loss.item() == pytest.approx(math.log(65), abs=1e-6)


def test_confident_guesses_of_the_lecture_start_above_the_loss_of_guessing():
    torch.manual_seed(0)
    every_V = torch.arange(65)
    pairs = torch.cartesian_prod(every_V, every_V)
    loss = cross_entropy(Bigram(65)(pairs[:, :1]), pairs[:, 1:])
    # Over all pairs: E log(sum of exp) - E logit, with N(0, 1) logits about ln V + 1/2.
    assert loss.item() == pytest.approx(math.log(65) + 0.5, abs=0.05)


def test_a_negative_spread_is_refused():
    with pytest.raises(UserError, match=r"std=-1\.0"):
        Bigram(65, std=-1.0)


def test_it_is_a_table_and_nothing_else():
    model = Bigram(65, block_size=8)
    assert model.parameter_count() == 65 * 65
    assert model.flops_per_token() == 0
    assert (model.vocab_size, model.block_size) == (65, 8)
    assert model.new_cache(2) is None


def test_it_reads_texts_longer_than_its_training_blocks():
    assert Bigram(7, block_size=2)(torch.zeros(1, 50, dtype=torch.int64)).shape == (1, 50, 7)


def test_the_lectures_bigram_is_composed(composed):
    model = composed("model=bigram")
    assert isinstance(model, Bigram)
    assert model.parameter_count() == 4225
