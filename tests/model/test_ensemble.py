"""An ensemble against its members: their mean probability, and each one's gradient from its own share alone."""

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


def test_its_probabilities_are_the_mean_of_its_members(tokens_BT):
    model = ensemble(3).eval()
    expected_BTV = sum(member(tokens_BT).softmax(dim=-1) for member in model.members) / 3
    torch.testing.assert_close(model(tokens_BT).exp(), expected_BTV)


def test_logits_far_apart_and_impossible_tokens_stay_finite_where_one_member_says_so():
    logits = [torch.tensor([[0.0, -torch.inf]]), torch.tensor([[-300.0, 300.0]])]
    torch.testing.assert_close(average_logits(logits).exp(), torch.tensor([[0.5, 0.5]]))


def test_members_begin_apart():
    first, second = ensemble(2).members
    assert not torch.equal(first.token_embedding.weight, second.token_embedding.weight)


def test_in_training_each_learns_from_its_share_of_the_batch_as_if_alone():
    model = ensemble(3)
    tokens_BT = torch.randint(11, (6, 8), generator=torch.Generator().manual_seed(1))
    targets_BT = tokens_BT.roll(-1, dims=1)
    F.cross_entropy(model(tokens_BT).flatten(0, 1), targets_BT.flatten()).backward()
    shares = zip(model.members, tokens_BT.split(2), targets_BT.split(2), strict=True)
    for member, share_BT, share_targets_BT in shares:
        found = [p.grad.clone() for p in member.parameters()]
        member.zero_grad()
        F.cross_entropy(member(share_BT).flatten(0, 1), share_targets_BT.flatten()).backward()
        for gradient, p in zip(found, member.parameters(), strict=True):
            torch.testing.assert_close(gradient, p.grad / 3)


def test_sequences_that_the_members_cannot_share_are_refused_in_training_alone():
    model, tokens_BT = ensemble(3), torch.zeros(2, 8, dtype=torch.long)
    with pytest.raises(ValueError, match="2 sequences are no equal shares for 3 members"):
        model(tokens_BT)
    assert model.eval()(tokens_BT).shape == (2, 8, 11)


def test_a_cache_is_for_all_members_also_in_training(tokens_BT):
    model = ensemble(2)
    whole_BTV = model.eval()(tokens_BT)
    model.train()
    cache = model.new_cache(len(tokens_BT))
    model(tokens_BT[:, :5], cache)
    torch.testing.assert_close(model(tokens_BT[:, 5:], cache), whole_BTV[:, 5:])


@pytest.mark.parametrize("members", [0, 10**9])
def test_no_members_or_more_than_can_be_built_are_refused(members):
    with pytest.raises(UserError, match=rf"model\.members={members}: "):
        ensemble(members)


def test_it_counts_what_its_members_have():
    one, three = Transformer(**SMALL), ensemble(3)
    assert three.parameter_count() == 3 * one.parameter_count()
    assert len(three.matrix_parameters()) == 3 * len(one.matrix_parameters())
    assert three.flops_per_token() == one.flops_per_token()
    assert three.input_embeddings() is three.members[0].token_embedding.weight
