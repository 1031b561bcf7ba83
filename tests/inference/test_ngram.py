"""The n-gram model, compared to its definition, and its file."""

from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from chargpt.inference.ngram import ContextTable, NGramModel

texts = st.lists(st.integers(0, 4), min_size=5, max_size=60)


def witten_bell(tokens: list[int], vocab_size: int, context: tuple[int, ...]) -> np.ndarray:
    """The distribution by its definition, with dictionaries."""
    shorter = witten_bell(tokens, vocab_size, context[1:]) if context else np.full(vocab_size, 1 / vocab_size)
    n = len(context)
    followers = Counter(tokens[i + n] for i in range(len(tokens) - n) if tuple(tokens[i : i + n]) == context)
    if not followers:
        return shorter
    counts = np.array([followers[token] for token in range(vocab_size)])
    return (counts + len(followers) * shorter) / (counts.sum() + len(followers))


@given(texts, st.lists(st.integers(0, 4), max_size=3))
def test_distributions_are_those_of_the_definition(tokens, context):
    """The last n-grams of the text may be missing in the counts of shorter ones, so the text is followed by a pad."""
    tokens = [*tokens, 5, 5, 5, 5]
    model = NGramModel.count(torch.tensor(tokens), 6, 10**6)
    actual = model.distribution(tuple(context))
    assert actual.sum() == pytest.approx(1) and (actual > 0).all()
    expected = witten_bell(tokens, 6, tuple(context))
    np.testing.assert_allclose(actual[:5] / actual[:5].sum(), expected[:5] / expected[:5].sum(), rtol=0.35, atol=0.02)
    if len(context) == model.context_length:
        np.testing.assert_allclose(actual, expected, atol=0.02)


def test_long_texts_have_the_exact_distributions():
    draw = torch.Generator().manual_seed(0)
    tokens = (torch.rand(3000, generator=draw).square() * 6).long()
    model, listed = NGramModel.count(tokens, 6, 10**6), tokens.tolist()
    contexts = defaultdict(int)
    for i in range(0, 200, 7):
        for length in range(5):
            contexts[tuple(listed[i : i + length])] += 1
    for context in contexts:
        np.testing.assert_allclose(model.distribution(context), witten_bell(listed, 6, context), rtol=2e-2)


def test_a_longer_context_is_cropped():
    model = NGramModel.count(torch.arange(40) % 7, 7, 10**6)
    assert model.context_length == 4
    assert (model.distribution((6, 0, 1, 2, 3, 4)) == model.distribution((1, 2, 3, 4))).all()
    assert model.distribution((1, 2, 3, 4)).argmax() == 5


def test_the_size_is_limited_and_rare_contexts_are_left_out_first():
    tokens = torch.cat(
        (torch.arange(20).repeat(50), torch.randint(20, (2000,), generator=torch.Generator().manual_seed(0)))
    )
    complete = NGramModel.count(tokens, 20, 10**6)
    for limit in (complete.num_bytes - 1, complete.num_bytes // 2, complete.num_bytes // 10):
        model = NGramModel.count(tokens, 20, limit)
        assert complete.tables[0].num_bytes < model.num_bytes <= limit
        context = tuple(range(model.context_length))  # it occurs 50 times
        assert model.distribution(context).argmax() == model.context_length
    assert NGramModel.count(tokens, 20, 0).context_length == 0


def test_contexts_of_a_large_vocabulary_are_as_long_as_their_numbers_fit():
    tokens = torch.randint(50_257, (500,), generator=torch.Generator().manual_seed(0))
    model = NGramModel.count(tokens, 50_257, 10**7)
    assert model.context_length == 3
    assert model.distribution(tuple(tokens[10:13].tolist())).argmax() == tokens[13]


def test_a_text_shorter_than_the_longest_context():
    model = NGramModel.count(torch.tensor([1, 0, 1]), 2, 10**6)
    assert model.distribution((1, 0)).argmax() == 1


# Files


@pytest.fixture
def model() -> NGramModel:
    return NGramModel.count(torch.randint(9, (400,), generator=torch.Generator().manual_seed(0)), 9, 10**6)


def test_a_file_contains_the_same_model(model, tmp_path: Path):
    model.save(tmp_path / "draft.safetensors")
    loaded = NGramModel.load(tmp_path / "draft.safetensors", 9)
    for context in ((), (1,), (2, 3), (0, 1, 2, 3)):
        assert (loaded.distribution(context) == model.distribution(context)).all()


@pytest.mark.parametrize("content", [b"", b"{", b"\xff" * 100, b"\x08\x00\x00\x00\x00\x00\x00\x00{}      "])
def test_a_damaged_file_is_refused(tmp_path, content):
    (tmp_path / "draft.safetensors").write_bytes(content)
    with pytest.raises(ValueError):
        NGramModel.load(tmp_path / "draft.safetensors", 9)


def test_an_absent_file_is_refused(tmp_path):
    with pytest.raises(ValueError, match="FileNotFoundError"):
        NGramModel.load(tmp_path / "draft.safetensors", 9)


@given(st.data())
def test_untrusted_tables_are_refused_or_give_distributions(data):
    """Any value of any table may be replaced."""
    model = NGramModel.count(torch.randint(9, (100,), generator=torch.Generator().manual_seed(0)), 9, 10**6)
    tensors = {name: tensor.clone() for name, tensor in model.tensors().items()}
    name = data.draw(st.sampled_from(sorted(tensors)))
    change = data.draw(st.sampled_from(["value", "length", "type", "shape", "remove"]))
    if change == "value":
        tensor = tensors[name].long()
        tensor[data.draw(st.integers(0, len(tensor) - 1))] = data.draw(st.integers(-(2**40), 2**40))
        tensors[name] = tensor
    elif change == "length":
        tensors[name] = tensors[name][: data.draw(st.integers(0, len(tensors[name]) - 1))]
    elif change == "type":
        tensors[name] = tensors[name].float()
    elif change == "shape":
        tensors[name] = tensors[name][:, None]
    else:
        del tensors[name]
    try:
        loaded = NGramModel.from_tensors(tensors, 9)
    except ValueError:
        return
    for context in ((), (3,), (1, 2, 3, 4)):
        probabilities = loaded.distribution(context)
        assert probabilities.shape == (9,) and (probabilities >= 0).all() and probabilities.sum() > 0


def test_another_vocabulary_is_refused(model, tmp_path):
    model.save(tmp_path / "draft.safetensors")
    with pytest.raises(ValueError, match="inconsistent"):
        NGramModel.load(tmp_path / "draft.safetensors", 8)


def test_too_many_tables_are_refused(tmp_path):
    tensors = {f"{i}/{name}": torch.ones(1, dtype=torch.long) for i in range(50) for name in ContextTable.FIELDS}
    save_file(tensors, tmp_path / "draft.safetensors")
    with pytest.raises(ValueError, match="too many"):
        NGramModel.load(tmp_path / "draft.safetensors", 9)
