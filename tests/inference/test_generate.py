"""New tokens: the cached path against the lecture's loop, and what each setting promises."""

import pytest
import torch

from chargpt.errors import UserError
from chargpt.inference.generate import generate

PROMPT = torch.tensor([1, 2, 3])
LONG = 20  # tokens, well past the block of 8


def drawn(model, n: int = LONG, **settings) -> torch.Tensor:
    """The tokens of all samples, B x n."""
    return torch.stack(list(generate(model, PROMPT, n, **settings)), dim=1)


def logits_of_the_lecture(model, tokens_N: torch.Tensor) -> torch.Tensor:
    """The logits that the lecture's generate draws each new token from: a full pass over the last block."""
    rows = []
    with torch.no_grad():
        for end in range(len(PROMPT), len(tokens_N)):
            rows.append(model(tokens_N[None, max(0, end - model.block_size) : end])[0, -1])
    return torch.stack(rows)


def test_greedy_is_the_argmax_of_the_cropped_context_each_time(model):
    (new_N,) = drawn(model, temperature=0, window="exact")
    logits = logits_of_the_lecture(model, torch.cat((PROMPT, new_N)))
    assert torch.equal(logits.argmax(dim=-1), new_N)


@pytest.mark.parametrize("window", ["half", "exact"])
def test_the_cached_path_draws_what_full_passes_draw(model, monkeypatch, window):
    settings = dict(seed=5, num_samples=2, window=window)
    cached = drawn(model, **settings)
    monkeypatch.setattr(type(model), "new_cache", lambda self, batch_size: None)
    assert torch.equal(cached, drawn(model, **settings))


def test_the_windows_differ_only_past_a_block(model):
    half, exact = (drawn(model, seed=3, window=window)[0] for window in ("half", "exact"))
    within = model.block_size - len(PROMPT) + 1
    assert torch.equal(half[:within], exact[:within])
    assert model.new_cache(1) is None or not torch.equal(half, exact)  # to a bigram they are the same


def test_the_tokens_can_be_trained_on(model):
    new_B1 = next(generate(model, PROMPT, 1))[:, None]
    model.requires_grad_(True)
    model(new_B1).sum().backward()
    model.requires_grad_(False)


def test_draws_follow_the_softmax_of_the_logits_over_the_temperature(model):
    with torch.no_grad():
        expected_V = (model(PROMPT[None])[0, -1] / 0.7).softmax(dim=-1)
    new = drawn(model, n=1, num_samples=4000, temperature=0.7, seed=1)
    found_V = torch.bincount(new.flatten(), minlength=model.vocab_size) / 4000
    # Five standard deviations of a share of 4000 draws, at most.
    assert (found_V - expected_V).abs().max() < 5 * 0.5 / 4000**0.5


def test_the_same_seed_gives_the_same_tokens_and_another_seed_others(model):
    assert torch.equal(drawn(model, seed=3), drawn(model, seed=3))
    assert not torch.equal(drawn(model, seed=3), drawn(model, seed=4))


def test_a_sample_does_not_depend_on_how_many_are_drawn_beside_it(model):
    three, five = drawn(model, num_samples=3, seed=9), drawn(model, num_samples=5, seed=9)
    assert torch.equal(three, five[:3])
    assert len({tuple(row.tolist()) for row in five}) == 5


def test_the_global_random_state_is_left_alone(model):
    before = torch.get_rng_state()
    drawn(model)
    assert torch.equal(before, torch.get_rng_state())


def test_top_k_of_one_is_greedy(model):
    assert torch.equal(drawn(model, top_k=1, seed=2), drawn(model, temperature=0))


def test_top_k_draws_only_from_the_likeliest_and_from_all_of_them(model):
    with torch.no_grad():
        best = set(model(PROMPT[None])[0, -1].topk(3).indices.tolist())
    assert set(drawn(model, n=1, num_samples=2000, top_k=3, temperature=3.0).flatten().tolist()) == best


def test_top_k_beyond_the_vocabulary_is_all_of_it(model):
    assert torch.equal(drawn(model, top_k=1000), drawn(model))


def test_top_p_draws_only_from_the_smallest_set_that_holds_the_probability(model):
    with torch.no_grad():
        probabilities = model(PROMPT[None])[0, -1].softmax(dim=-1).sort(descending=True)
    size = int((probabilities.values.cumsum(0) < 0.6).sum()) + 1
    nucleus = set(probabilities.indices[:size].tolist())
    assert set(drawn(model, n=1, num_samples=3000, top_p=0.6).flatten().tolist()) <= nucleus


def test_a_tiny_top_p_leaves_the_likeliest_token(model):
    assert torch.equal(drawn(model, top_p=1e-6, seed=2), drawn(model, temperature=0))


def test_a_prompt_longer_than_the_block_is_cropped(model):
    long = torch.arange(30) % model.vocab_size
    whole = list(generate(model, long, 5, seed=1))
    cropped = list(generate(model, long[-model.block_size :], 5, seed=1))
    assert torch.equal(torch.stack(whole), torch.stack(cropped))


@pytest.mark.parametrize(
    "settings",
    [
        dict(temperature=-1.0),
        dict(temperature=float("nan")),
        dict(top_k=0),
        dict(top_p=0.0),
        dict(top_p=1.5),
        dict(window="whole"),
        dict(quantize="int3"),
    ],
    ids=str,
)
def test_settings_that_cannot_be_are_refused(model, settings):
    with pytest.raises(UserError, match=next(iter(settings))):
        drawn(model, **settings)
