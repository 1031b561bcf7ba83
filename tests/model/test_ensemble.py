"""Tests of the ensemble against its members: mean probability, and gradients from each member's share of the batch."""

import pytest
import torch
from torch.nn import functional as F

from chargpt.errors import UserError
from chargpt.model.ensemble import Ensemble, average_logits
from chargpt.model.transformer import Transformer
from tests.model.conftest import SMALL

SETTINGS = {name: value for name, value in SMALL.items() if name not in ("vocab_size", "block_size")}


def ensemble(members: int, **changes) -> Ensemble:
    torch.manual_seed(0)
    return Ensemble(11, 8, members, **SETTINGS | changes)


def test_the_probabilities_are_the_mean_of_the_members(tokens_BT):
    model = ensemble(3).eval()
    expected_BTV = sum(member(tokens_BT).softmax(dim=-1) for member in model.members) / 3
    torch.testing.assert_close(model(tokens_BT).exp(), expected_BTV)


def test_averaging_extreme_and_infinite_logits_is_stable():
    logits = [torch.tensor([[0.0, -torch.inf]]), torch.tensor([[-300.0, 300.0]])]
    torch.testing.assert_close(average_logits(logits).exp(), torch.tensor([[0.5, 0.5]]))


def test_members_have_different_initial_weights():
    first, second = ensemble(2).members
    assert not torch.equal(first.token_embedding.weight, second.token_embedding.weight)


def test_in_training_each_member_gets_the_gradient_of_its_share_of_the_batch():
    model = ensemble(3)
    tokens_BT = torch.randint(11, (6, 8), generator=torch.Generator().manual_seed(1))
    targets_BT = tokens_BT.roll(-1, dims=1)
    F.cross_entropy(model(tokens_BT).flatten(0, 1), targets_BT.flatten()).backward()
    shares = zip(model.members, tokens_BT.split(2), targets_BT.split(2), strict=True)
    for member, share_BT, share_targets_BT in shares:
        gradients = [p.grad.clone() for p in member.parameters()]
        member.zero_grad()
        F.cross_entropy(member(share_BT).flatten(0, 1), share_targets_BT.flatten()).backward()
        for gradient, p in zip(gradients, member.parameters(), strict=True):
            torch.testing.assert_close(gradient, p.grad / 3)


def test_the_batch_must_be_divisible_by_the_members_only_in_training():
    model, tokens_BT = ensemble(3), torch.zeros(2, 8, dtype=torch.long)
    with pytest.raises(ValueError, match="2 sequences cannot be split equally among 3 members"):
        model(tokens_BT)
    assert model.eval()(tokens_BT).shape == (2, 8, 11)


def test_with_a_cache_all_members_are_averaged_also_in_training(tokens_BT):
    model = ensemble(2)
    expected_BTV = model.eval()(tokens_BT)
    model.train()
    cache = model.new_cache(len(tokens_BT))
    model(tokens_BT[:, :5], cache)
    torch.testing.assert_close(model(tokens_BT[:, 5:], cache), expected_BTV[:, 5:])


@pytest.mark.parametrize("members", [0, 10**9])
def test_zero_or_too_many_members_are_a_user_error(members):
    with pytest.raises(UserError, match=rf"model\.members={members}: "):
        ensemble(members)


def test_parameters_matrices_and_flops_are_those_of_the_members():
    one, three = Transformer(**SMALL), ensemble(3)
    assert three.parameter_count() == 3 * one.parameter_count()
    assert len(three.matrix_parameters()) == 3 * len(one.matrix_parameters())
    assert three.flops_per_token() == one.flops_per_token()
    assert three.input_embeddings() is three.members[0].token_embedding.weight
