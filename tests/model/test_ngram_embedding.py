"""Tests of the n-gram embeddings: rows, hashing, dropout, and equality with a KV cache."""

from functools import partial
from itertools import product

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from chargpt.errors import UserError
from chargpt.model.ngram_embedding import NGramEmbedding


def random_embedding(*args, **kwargs) -> NGramEmbedding:
    torch.manual_seed(0)
    embedding = NGramEmbedding(*args, **kwargs)
    for table in embedding.tables:
        nn.init.normal_(table.weight)
    return embedding


def test_the_initial_embeddings_are_zero(tokens_BT):
    assert not NGramEmbedding(11, 12, lengths=(2, 3))(tokens_BT).any()


@pytest.mark.parametrize("n", [2, 3])
def test_each_n_gram_has_a_separate_row_if_there_are_enough_rows(n):
    embedding = random_embedding(5, 4, lengths=(n,), buckets=5**n)
    all_BT = torch.tensor(list(product(range(5), repeat=n)))
    last_BC = embedding(all_BT)[:, -1]
    assert len(last_BC.unique(dim=0)) == 5**n
    assert embedding.tables[0].num_embeddings == 5**n


def test_n_grams_are_hashed_evenly_if_there_are_too_few_rows():
    embedding = NGramEmbedding(65, 1, lengths=(3,), buckets=1000)
    rows_B = embedding._rows(torch.cartesian_prod(*[torch.arange(65)] * 3), 3, 1000)[:, 0]
    counts = rows_B.bincount(minlength=1000).float()
    assert counts.shape == (1000,)
    assert counts.std() < 0.2 * counts.mean()  # a random function would give 0.06


@pytest.mark.parametrize("vocab_size", [64, 65, 100, 128, 256])
@pytest.mark.parametrize("n", [2, 3, 5])
def test_almost_all_tokens_at_any_position_hash_to_different_rows(vocab_size, n):
    embedding = NGramEmbedding(vocab_size, 1, lengths=(n,), buckets=16384)
    for position in range(n):
        all_BS = torch.full((vocab_size, n), 7)
        all_BS[:, position] = torch.arange(vocab_size)
        assert len(embedding._rows(all_BS, n, embedding.tables[0].num_embeddings).unique()) > 0.95 * vocab_size


@given(changed=st.integers(0, 7), n=st.integers(2, 4))
def test_an_n_gram_embedding_depends_only_on_the_last_n_tokens(changed, n):
    embedding = random_embedding(11, 12, lengths=(n,), buckets=10**5)
    tokens_BT = torch.arange(8)[None] % 11
    other_BT = tokens_BT.clone()
    other_BT[0, changed] = 10
    differs_T = (embedding(tokens_BT) != embedding(other_BT)).any(dim=-1)[0]
    assert differs_T.nonzero().flatten().tolist() == list(range(changed, min(8, changed + n)))


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(chunks=st.lists(st.integers(1, 8), min_size=1, max_size=8).filter(lambda chunks: sum(chunks) <= 8))
def test_a_cache_filled_in_any_chunks_does_not_change_the_logits_of_a_model_with_n_grams(small, chunks):
    model = small(ngram_embedding=partial(random_embedding, lengths=(2, 4)))
    tokens_BT = torch.randint(11, (3, sum(chunks)))
    cache = model.new_cache(3)
    pieces = [model(piece_BT, cache) for piece_BT in tokens_BT.split(chunks, dim=1)]
    torch.testing.assert_close(torch.cat(pieces, dim=1), model(tokens_BT), atol=1e-5, rtol=1e-5)


def test_dropout_drops_complete_n_grams_independently():
    embedding, p, n = random_embedding(11, 12, lengths=(2, 3), dropout=0.4), 0.4, 40_000
    tokens_BT = torch.randint(11, (n // 8, 8), generator=torch.Generator().manual_seed(2))
    pairs_BTC, triples_BTC = (
        table(embedding._rows(torch.cat((tokens_BT.new_zeros(len(tokens_BT), length - 1), tokens_BT), 1), length, rows))
        for length, table, rows in zip((2, 3), embedding.tables, (121, 1331), strict=True)
    )
    torch.testing.assert_close(embedding.eval()(tokens_BT), pairs_BTC + triples_BTC)
    actual_BTC = embedding.train()(tokens_BT) * (1 - p)
    cases = {(0, 0): 0 * pairs_BTC, (1, 0): pairs_BTC, (0, 1): triples_BTC, (1, 1): pairs_BTC + triples_BTC}
    is_case_BT = {case: (actual_BTC - value_BTC).abs().amax(-1) < 1e-3 for case, value_BTC in cases.items()}
    assert torch.stack(list(is_case_BT.values())).sum(0).eq(1).all()
    for (pair, triple), mask_BT in is_case_BT.items():
        expected = (p, 1 - p)[pair] * (p, 1 - p)[triple]
        assert (mask_BT.float().mean() - expected).abs() < 5 * (expected * (1 - expected) / n) ** 0.5


@pytest.mark.parametrize(
    "invalid",
    [
        dict(lengths=()),
        dict(lengths=(1,)),
        dict(lengths=(2.5,)),
        dict(lengths=(3.0,)),
        dict(lengths=(2, 10**9)),
        dict(buckets=0),
        dict(dropout=1.0),
        dict(dropout=-0.1),
    ],
)
def test_invalid_settings_are_a_user_error(invalid):
    with pytest.raises(UserError, match=r"ngram_embedding"):
        NGramEmbedding(11, 12, **invalid)
