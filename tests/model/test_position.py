"""Tests of the position encodings: learned vectors, rotations that depend only on distances, or none."""

import pytest
import torch

from chargpt.errors import UserError
from chargpt.model.position import Learned, PositionEncoding, Rotary, rotate

T_12 = torch.arange(12)


def rotated(x_D: torch.Tensor, rotary: Rotary) -> torch.Tensor:
    """The vector rotated for each of 12 positions: (12, D)."""
    return rotate(x_D.expand(1, 1, 12, -1), rotary.rotation(T_12))[0, 0]


@pytest.fixture
def rotary() -> Rotary:
    return Rotary(12, 32, 8)


@pytest.fixture
def x_BTC() -> torch.Tensor:
    return torch.randn(2, 3, 32, generator=torch.Generator().manual_seed(0))


def test_the_base_class_encodes_no_positions(x_BTC):
    none = PositionEncoding(12, 32, 8)
    assert none.add(x_BTC, torch.tensor([4, 5, 6])).equal(x_BTC)
    assert none.rotation(torch.tensor([4, 5, 6])) is None
    assert list(none.parameters()) == []


def test_learned_positions_are_rows_of_a_table_added_to_the_tokens(x_BTC):
    learned = Learned(12, 32, 8)
    added_BTC = learned.add(x_BTC, torch.tensor([4, 0, 11]))
    table = learned.embedding.weight
    assert table.shape == (12, 32)
    for t, position in enumerate((4, 0, 11)):
        assert added_BTC[:, t].equal(x_BTC[:, t] + table[position])
    assert learned.rotation(T_12) is None


def test_rotary_positions_change_no_embeddings_and_have_no_parameters(rotary, x_BTC):
    assert rotary.add(x_BTC, torch.tensor([4, 5, 6])).equal(x_BTC)
    assert list(rotary.parameters()) == []
    assert rotary.state_dict() == {}  # so that a checkpoint does not depend on the block size


@pytest.mark.parametrize("base", [10000.0, 100.0])
def test_each_pair_of_channels_is_rotated_as_a_complex_number(base):
    D = 8
    x_D = torch.randn(D, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    pairs = torch.complex(x_D[: D // 2], x_D[D // 2 :])
    rotated_TD = rotated(x_D, Rotary(12, 32, D, base=base))
    for m in range(12):
        angles = torch.tensor([m * base ** (-2 * i / D) for i in range(D // 2)], dtype=torch.float64)
        expected = pairs * torch.exp(1j * angles)
        torch.testing.assert_close(rotated_TD[m], torch.cat((expected.real, expected.imag)), atol=1e-5, rtol=1e-5)


def test_scores_depend_only_on_the_distance_of_query_and_key(rotary):
    q_D, k_D = torch.randn(2, 8, generator=torch.Generator().manual_seed(2))
    scores_TT = rotated(q_D, rotary) @ rotated(k_D, rotary).T
    for shift in (1, 5):
        torch.testing.assert_close(scores_TT[shift:, shift:], scores_TT[:-shift, :-shift], atol=1e-4, rtol=1e-4)
    assert scores_TT[0].std() > 0.1
    assert (scores_TT - scores_TT.T).abs().max() > 0.1  # the direction matters


def test_a_rotation_preserves_the_norm(rotary):
    x_D = torch.randn(8, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(rotated(x_D, rotary).norm(dim=-1), x_D.norm().expand(12), atol=1e-5, rtol=1e-5)


def test_the_first_position_is_not_rotated(rotary):
    x_D = torch.randn(8, generator=torch.Generator().manual_seed(4))
    assert rotated(x_D, rotary)[0].equal(x_D)


def test_a_rotation_preserves_bfloat16(rotary):
    x_BHTD = torch.randn(1, 2, 12, 8, dtype=torch.bfloat16)
    assert rotate(x_BHTD, rotary.rotation(T_12)).dtype == torch.bfloat16


def test_an_odd_head_size_is_a_user_error():
    with pytest.raises(UserError, match=r"head size .* is 5: change model\.n_embd or model\.n_head"):
        Rotary(12, 15, 5)
