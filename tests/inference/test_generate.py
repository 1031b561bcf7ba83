"""Generation: the KV cache compared to the lecture's loop, and the effect of each setting."""

import pytest
import torch

from chargpt.errors import UserError
from chargpt.inference.generate import generate

PROMPT = torch.tensor([1, 2, 3])
LONG = 20  # tokens, more than twice the block size of 8


def sample(model, n: int = LONG, **settings) -> torch.Tensor:
    """Returns the tokens of all samples, B x n."""
    return torch.stack(list(generate(model, PROMPT, n, **settings)), dim=1)


def lecture_logits(model, tokens_N: torch.Tensor) -> torch.Tensor:
    """Returns the logits from which the lecture's `generate` samples: each from a full pass over the last block."""
    rows = []
    with torch.no_grad():
        for end in range(len(PROMPT), len(tokens_N)):
            rows.append(model(tokens_N[None, max(0, end - model.block_size) : end])[0, -1])
    return torch.stack(rows)


def test_greedy_tokens_are_the_argmax_of_the_cropped_context(model):
    (new_N,) = sample(model, temperature=0, window="exact")
    logits = lecture_logits(model, torch.cat((PROMPT, new_N)))
    assert torch.equal(logits.argmax(dim=-1), new_N)


@pytest.mark.parametrize("window", ["half", "exact"])
def test_sampling_with_and_without_a_kv_cache_is_equal(model, monkeypatch, window):
    settings = dict(seed=5, num_samples=2, window=window)
    cached = sample(model, **settings)
    monkeypatch.setattr(type(model), "new_cache", lambda self, batch_size: None)
    assert torch.equal(cached, sample(model, **settings))


def test_the_windows_differ_only_beyond_the_block_size(model):
    half, exact = (sample(model, seed=3, window=window)[0] for window in ("half", "exact"))
    within = model.block_size - len(PROMPT) + 1
    assert torch.equal(half[:within], exact[:within])
    assert model.new_cache(1) is None or not torch.equal(half, exact)  # a bigram model has no cache


def test_generated_tokens_can_be_used_for_training(model):
    new_B1 = next(generate(model, PROMPT, 1))[:, None]
    model.requires_grad_(True)
    model(new_B1).sum().backward()
    model.requires_grad_(False)


def test_samples_follow_the_softmax_of_the_logits_divided_by_the_temperature(model):
    with torch.no_grad():
        expected_V = (model(PROMPT[None])[0, -1] / 0.7).softmax(dim=-1)
    new = sample(model, n=1, num_samples=4000, temperature=0.7, seed=1)
    frequencies_V = torch.bincount(new.flatten(), minlength=model.vocab_size) / 4000
    # At most five standard deviations of a frequency in 4000 samples.
    assert (frequencies_V - expected_V).abs().max() < 5 * 0.5 / 4000**0.5


def test_the_tokens_depend_on_the_seed(model):
    assert torch.equal(sample(model, seed=3), sample(model, seed=3))
    assert not torch.equal(sample(model, seed=3), sample(model, seed=4))


def test_a_sample_does_not_depend_on_num_samples(model):
    three, five = sample(model, num_samples=3, seed=9), sample(model, num_samples=5, seed=9)
    assert torch.equal(three, five[:3])
    assert len({tuple(row.tolist()) for row in five}) == 5


def test_the_global_random_state_is_unchanged(model):
    before = torch.get_rng_state()
    sample(model)
    assert torch.equal(before, torch.get_rng_state())


def test_top_k_of_one_is_greedy(model):
    assert torch.equal(sample(model, top_k=1, seed=2), sample(model, temperature=0))


def test_top_k_samples_from_exactly_the_k_most_likely_tokens(model):
    with torch.no_grad():
        best = set(model(PROMPT[None])[0, -1].topk(3).indices.tolist())
    assert set(sample(model, n=1, num_samples=2000, top_k=3, temperature=3.0).flatten().tolist()) == best


def test_top_k_above_the_vocabulary_size_has_no_effect(model):
    assert torch.equal(sample(model, top_k=1000), sample(model))


def test_top_p_samples_only_from_the_nucleus(model):
    with torch.no_grad():
        probabilities = model(PROMPT[None])[0, -1].softmax(dim=-1).sort(descending=True)
    size = int((probabilities.values.cumsum(0) < 0.6).sum()) + 1
    nucleus = set(probabilities.indices[:size].tolist())
    assert set(sample(model, n=1, num_samples=3000, top_p=0.6).flatten().tolist()) <= nucleus


def test_a_tiny_top_p_is_greedy(model):
    assert torch.equal(sample(model, top_p=1e-6, seed=2), sample(model, temperature=0))


def test_a_prompt_longer_than_the_block_is_cropped(model):
    long = torch.arange(30) % model.vocab_size
    uncropped = list(generate(model, long, 5, seed=1))
    cropped = list(generate(model, long[-model.block_size :], 5, seed=1))
    assert torch.equal(torch.stack(uncropped), torch.stack(cropped))


@pytest.mark.parametrize(
    "settings",
    [
        dict(temperature=-1.0),
        dict(temperature=float("nan")),
        dict(top_k=0),
        dict(top_p=0.0),
        dict(top_p=1.5),
        dict(window="full"),
        dict(quantize="int3"),
    ],
    ids=str,
)
def test_invalid_settings_raise_an_error(model, settings):
    with pytest.raises(UserError, match=next(iter(settings))):
        sample(model, **settings)
