"""Tests of the loss and its units against their definitions."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from chargpt.data.dataloader import IGNORE_INDEX
from chargpt.model.loss import bits_per_character, cross_entropy, perplexity


@pytest.fixture
def logits_BTV() -> torch.Tensor:
    return 3 * torch.randn(4, 5, 7, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def targets_BT() -> torch.Tensor:
    return torch.randint(7, (4, 5), generator=torch.Generator().manual_seed(1))


def nats_BT(logits_BTV, targets_BT):
    probabilities_BTV = logits_BTV.exp() / logits_BTV.exp().sum(dim=-1, keepdim=True)
    return -probabilities_BTV.gather(-1, targets_BT[..., None]).squeeze(-1).log()


def test_cross_entropy_is_the_negative_log_probability_of_the_targets(logits_BTV, targets_BT):
    expected_BT = nats_BT(logits_BTV, targets_BT)
    torch.testing.assert_close(cross_entropy(logits_BTV, targets_BT), expected_BT.mean())
    torch.testing.assert_close(cross_entropy(logits_BTV, targets_BT, reduction="sum"), expected_BT.sum())


def test_ignored_targets_do_not_count(logits_BTV, targets_BT):
    ignored_BT = torch.arange(20).view(4, 5) % 3 == 0
    counted_N = nats_BT(logits_BTV, targets_BT)[~ignored_BT]
    targets_BT[ignored_BT] = IGNORE_INDEX
    torch.testing.assert_close(cross_entropy(logits_BTV, targets_BT), counted_N.mean())
    torch.testing.assert_close(cross_entropy(logits_BTV, targets_BT, reduction="sum"), counted_N.sum())
    logits_BTV.requires_grad_()
    cross_entropy(logits_BTV, targets_BT).backward()
    assert (logits_BTV.grad[ignored_BT] == 0).all()


def test_the_summed_loss_of_padding_is_zero(logits_BTV):
    targets_BT = torch.full((4, 5), IGNORE_INDEX)
    assert cross_entropy(logits_BTV, targets_BT, reduction="sum").item() == 0


def test_the_loss_of_bfloat16_logits_is_computed_in_float32(logits_BTV, targets_BT):
    half_BTV = logits_BTV.bfloat16()
    loss = cross_entropy(half_BTV, targets_BT)
    assert loss.dtype == torch.float32
    assert loss.equal(cross_entropy(half_BTV.float(), targets_BT))


def test_the_loss_of_a_uniform_prediction_is_the_logarithm_of_the_vocabulary_size(targets_BT):
    assert cross_entropy(torch.zeros(4, 5, 7), targets_BT).item() == pytest.approx(math.log(7))


@settings(max_examples=50, deadline=None)
@given(st.floats(0.0, 600.0), st.floats(0.1, 20.0))
def test_bits_per_character_and_perplexity_convert_the_loss(loss, characters_per_token):
    assert bits_per_character(loss, 1.0) == pytest.approx(math.log2(math.e) * loss)
    assert bits_per_character(loss, characters_per_token) * characters_per_token == pytest.approx(
        bits_per_character(loss, 1.0)
    )
    assert math.log(perplexity(loss)) == pytest.approx(loss)


def test_a_uniform_prediction_of_sixteen_tokens_is_four_bits_and_perplexity_sixteen():
    assert bits_per_character(math.log(16), 1.0) == pytest.approx(4)
    assert bits_per_character(math.log(16), 2.0) == pytest.approx(2)
    assert perplexity(math.log(16)) == pytest.approx(16)


@pytest.mark.parametrize("loss", [1000.0, math.inf])
def test_perplexity_overflows_to_infinity(loss):
    assert perplexity(loss) == math.inf


def test_the_perplexity_of_nan_is_nan():
    assert not perplexity(math.nan) < math.inf
