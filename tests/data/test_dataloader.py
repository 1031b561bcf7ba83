"""Tests of the block loaders: random batches depend only on (seed, k), and evaluation counts each prediction once."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from chargpt.data.dataloader import IGNORE_INDEX, EvalBlockLoader, RandomBlockLoader, limit_batches
from chargpt.errors import UserError

# Each token equals its position in the corpus, so that a batch shows its origin.
POSITIONS_N = torch.arange(1000)


def same(one, other) -> bool:
    return all(a.equal(b) for a, b in zip(one, other, strict=True))


@settings(max_examples=40, deadline=None)
@given(block_size=st.integers(1, 20), batch_size=st.integers(1, 9), extra=st.integers(0, 30), k=st.integers(0, 99))
def test_targets_are_the_inputs_shifted_by_one_in_the_corpus(block_size, batch_size, extra, k):
    corpus_N = torch.randperm(block_size + 1 + extra) % 256
    positions_N = torch.arange(len(corpus_N))
    inputs_BT, targets_BT = RandomBlockLoader(corpus_N.to(torch.uint8), block_size, batch_size, seed=1).batch(k)
    positions_BT, next_positions_BT = RandomBlockLoader(positions_N, block_size, batch_size, seed=1).batch(k)
    assert inputs_BT.shape == targets_BT.shape == (batch_size, block_size)
    assert inputs_BT.dtype == targets_BT.dtype == torch.int64
    assert inputs_BT.equal(corpus_N[positions_BT])
    assert targets_BT.equal(corpus_N[next_positions_BT])
    assert next_positions_BT.equal(positions_BT + 1)
    assert positions_BT.equal(positions_BT[:, :1] + torch.arange(block_size))


def test_a_batch_does_not_depend_on_earlier_random_numbers():
    blocks = RandomBlockLoader(POSITIONS_N, 8, 4, seed=3)
    ascending = [blocks.batch(k) for k in range(5)]
    torch.manual_seed(0)
    torch.rand(7)
    other = RandomBlockLoader(POSITIONS_N, 8, 4, seed=3)
    descending = [other.batch(k) for k in reversed(range(5))]
    assert all(same(a, b) for a, b in zip(ascending, reversed(descending), strict=True))


def test_drawing_a_batch_does_not_change_the_default_generator():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    RandomBlockLoader(POSITIONS_N, 8, 4, seed=3).batch(0)
    assert torch.rand(3).equal(expected)


def test_iteration_starts_at_the_given_batch():
    uninterrupted = list(itertools.islice(RandomBlockLoader(POSITIONS_N, 8, 4, seed=3), 8))
    resumed = list(itertools.islice(RandomBlockLoader(POSITIONS_N, 8, 4, seed=3, first=5), 3))
    assert all(same(a, b) for a, b in zip(uninterrupted[5:], resumed, strict=True))


def test_repeated_batches_are_the_first_ones_again():
    blocks, repeated = (RandomBlockLoader(POSITIONS_N, 8, 4, seed=3, repeat=repeat) for repeat in (None, 3))
    assert all(same(repeated.batch(k), blocks.batch(k % 3)) for k in range(8))
    assert not same(repeated.batch(3), blocks.batch(3))


@pytest.mark.parametrize(("value", "count"), [(None, 10), (3, 3), (1, 1), (50, 10), (1.0, 10), (0.3, 3), (0.99, 9)])
def test_a_limit_is_a_number_or_a_fraction_of_the_batches(value, count):
    assert limit_batches("limit", value, 10) == count


@pytest.mark.parametrize("value", [0, -1, 0.0, 0.01, 1.5, -0.5])
def test_a_limit_that_selects_no_batch_is_a_user_error(value):
    with pytest.raises(UserError, match=f"limit={value}: "):
        limit_batches("limit", value, 10)


def test_iterating_twice_gives_the_same_batches():
    blocks = RandomBlockLoader(POSITIONS_N, 8, 4, seed=3, first=2)
    assert same(next(iter(blocks)), next(iter(blocks)))


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_the_interleaved_blocks_of_all_ranks_are_the_batch_of_one_process(world_size):
    single = RandomBlockLoader(POSITIONS_N, 8, 8, seed=3)
    ranks = [RandomBlockLoader(POSITIONS_N, 8, 8, seed=3, rank=r, world_size=world_size) for r in range(world_size)]
    for k in (0, 1, 17):
        shares = [rank.batch(k) for rank in ranks]
        interleaved = [torch.stack(parts, dim=1).flatten(0, 1) for parts in zip(*shares, strict=True)]
        assert same(single.batch(k), interleaved)


def test_different_batches_and_seeds_draw_different_blocks():
    drawn = [
        tuple(RandomBlockLoader(POSITIONS_N, 8, 8, seed=seed).batch(k)[0][:, 0].tolist())
        for seed in (0, 1, 2, 1337, -1)
        for k in range(20)
    ]
    assert len(set(drawn)) == len(drawn)


def test_every_block_of_a_corpus_can_be_drawn():
    block_size, starts = 8, 5
    blocks = RandomBlockLoader(POSITIONS_N[: block_size + starts], block_size, 4, seed=3)
    drawn = torch.cat([blocks.batch(k)[0][:, 0] for k in range(50)])
    assert set(drawn.tolist()) == set(range(starts))


def test_block_starts_are_uniformly_distributed():
    starts = 10
    blocks = RandomBlockLoader(POSITIONS_N[: 8 + starts], 8, 1000, seed=3)
    counts = torch.stack([blocks.batch(k)[0][:, 0] for k in range(10)]).flatten().bincount(minlength=starts)
    assert (counts - 1000).abs().max() < 5 * 1000**0.5  # five standard deviations


def test_a_corpus_of_a_single_block_gives_identical_blocks():
    inputs_BT, targets_BT = RandomBlockLoader(POSITIONS_N[:9], 8, 3, seed=3).batch(4)
    assert inputs_BT.tolist() == [list(range(8))] * 3
    assert targets_BT.tolist() == [list(range(1, 9))] * 3


sizes = dict(
    n=st.integers(2, 120),
    block_size=st.integers(1, 17),
    batch_size=st.integers(1, 9),
    world_size=st.integers(1, 5),
)


@settings(max_examples=150, deadline=None)
@given(**sizes)
def test_all_ranks_together_count_every_prediction_of_a_split_once(n, block_size, batch_size, world_size):
    seen = []
    for rank in range(world_size):
        for inputs_BT, targets_BT in EvalBlockLoader(POSITIONS_N[:n], block_size, batch_size, rank, world_size):
            assert inputs_BT.shape == targets_BT.shape
            counted = targets_BT != IGNORE_INDEX
            columns_BT = torch.arange(inputs_BT.shape[1]).expand_as(inputs_BT)
            seen += zip(
                inputs_BT[counted].tolist(),
                targets_BT[counted].tolist(),
                columns_BT[counted].tolist(),
                strict=True,
            )
    assert sorted(seen) == [(i, i + 1, i % block_size) for i in range(n - 1)]


@settings(max_examples=150, deadline=None)
@given(**sizes, max_tokens=st.integers(1, 150))
def test_a_part_of_a_split_consists_of_blocks_at_equal_distances(n, block_size, batch_size, world_size, max_tokens):
    starts = []
    for rank in range(world_size):
        loader = EvalBlockLoader(POSITIONS_N[:n], block_size, batch_size, rank, world_size, max_tokens)
        for inputs_BT, targets_BT in loader:
            starts += [
                inputs_T[0].item()
                for inputs_T, targets_T in zip(inputs_BT, targets_BT, strict=True)
                if targets_T[0] != IGNORE_INDEX
            ]
    every = range(0, n - 1, block_size)
    assert len(starts) == min(len(every), max(1, max_tokens // block_size))
    assert sorted(starts) == sorted(set(starts) & set(every)), "each block once"
    gaps = {b - a for a, b in itertools.pairwise(sorted(starts))}
    assert not gaps or max(gaps) - min(gaps) <= block_size


@settings(max_examples=150, deadline=None)
@given(**sizes)
def test_all_ranks_get_the_same_number_of_batches_of_the_same_shape(n, block_size, batch_size, world_size):
    ranks = [EvalBlockLoader(POSITIONS_N[:n], block_size, batch_size, r, world_size) for r in range(world_size)]
    shapes = [[inputs_BT.shape for inputs_BT, _ in rank] for rank in ranks]
    assert all(of_rank == shapes[0] for of_rank in shapes)
    assert len(set(shapes[0])) == 1
    assert all(len(rank) == len(shapes[0]) for rank in ranks)
    assert shapes[0][0][0] <= batch_size
    assert shapes[0][0][1] == block_size


@settings(max_examples=100, deadline=None)
@given(**sizes)
def test_padding_is_less_than_one_batch_per_rank(n, block_size, batch_size, world_size):
    targets = [
        targets_BT
        for rank in range(world_size)
        for _, targets_BT in EvalBlockLoader(POSITIONS_N[:n], block_size, batch_size, rank, world_size)
    ]
    padded = sum(int((t == IGNORE_INDEX).sum()) for t in targets)
    assert padded < targets[0].numel() * world_size


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_split_smaller_than_a_batch_is_not_padded_to_a_full_batch(world_size):
    (batch,) = EvalBlockLoader(POSITIONS_N[:26], 8, 1000, world_size=world_size)
    assert batch[0].shape == (4 // world_size, 8)


@settings(max_examples=60, deadline=None)
@given(**sizes)
def test_the_inputs_before_each_counted_prediction_are_complete(n, block_size, batch_size, world_size):
    for rank in range(world_size):
        for inputs_BT, targets_BT in EvalBlockLoader(POSITIONS_N[:n], block_size, batch_size, rank, world_size):
            for inputs_T, targets_T in zip(inputs_BT.tolist(), targets_BT.tolist(), strict=True):
                counted = sum(target != IGNORE_INDEX for target in targets_T)
                assert targets_T[counted:] == [IGNORE_INDEX] * (block_size - counted)
                assert inputs_T[:counted] == list(range(inputs_T[0], inputs_T[0] + counted))


def test_evaluation_batches_are_repeatable_and_int64():
    blocks = EvalBlockLoader(POSITIONS_N[:50].to(torch.uint8), 8, 3)
    first, second = list(blocks), list(blocks)
    assert all(same(a, b) for a, b in zip(first, second, strict=True))
    assert all(inputs_BT.dtype == targets_BT.dtype == torch.int64 for inputs_BT, targets_BT in first)


@given(block_size=st.sampled_from([1, 3, 8, 12, 64]), warmup=st.integers(0, 30), k=st.integers(0, 40))
def test_warmup_batches_contain_the_same_tokens_in_shorter_blocks(block_size, warmup, k):
    without_warmup = RandomBlockLoader(POSITIONS_N, block_size, 4, seed=3).batch(k)
    inputs_BT, targets_BT = RandomBlockLoader(POSITIONS_N, block_size, 4, seed=3, warmup=warmup).batch(k)
    assert same((inputs_BT.reshape(4, -1), targets_BT.reshape(4, -1)), without_warmup)
    assert targets_BT.equal(inputs_BT + 1)
    expected = next((block_size / n for n, end in ((8, 1), (4, 2), (2, 3)) if 3 * k < end * warmup), block_size)
    assert expected <= inputs_BT.shape[1] <= block_size
    if expected == int(expected):
        assert inputs_BT.shape[1] == expected


def test_blocks_double_after_each_third_of_the_warmup():
    blocks = RandomBlockLoader(POSITIONS_N, 64, 4, seed=3, warmup=6)
    assert [blocks.batch(k)[0].shape[1] for k in range(8)] == [8, 8, 16, 16, 32, 32, 64, 64]


@pytest.mark.parametrize(("first", "lengths"), [(0, [8, 16, 32, 64]), (3, [16, 32, 64]), (6, [64]), (9, [64])])
def test_layouts_are_those_of_the_remaining_batches(first, lengths):
    blocks = RandomBlockLoader(POSITIONS_N, 64, 4, seed=3, warmup=6, first=first)
    assert [inputs_BT.shape for inputs_BT, _ in blocks.one_batch_per_length()] == [(4 * 64 // n, n) for n in lengths]
    expected = {(batch[0].shape, batch[0].stride()) for batch in itertools.islice(blocks, 10)}
    assert {(batch[0].shape, batch[0].stride()) for batch in blocks.one_batch_per_length()} == expected
