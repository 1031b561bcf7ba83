"""Sampling by replaying a recorded step. On a CPU, a tape of operations replaces the CUDA graph."""

import pytest
import torch

import chargpt
from chargpt.errors import UserError
from chargpt.inference import cuda_graph
from chargpt.inference.cuda_graph import GraphSampler
from chargpt.inference.generate import generate
from chargpt.model.bigram import Bigram
from chargpt.utils.seeding import fold_in
from tests.inference.architectures import build_model
from tests.inference.tape import record

PROMPT = torch.tensor([1, 2, 3])
MODELS = [
    ["model=gpt_nano"],
    ["model=gpt_modern"],
    ["model=gpt_modern", "model/value_residual=residual", "model/unet_skips=u_net", "model/softcap=soft_cap"],
    ["model=gpt_ensemble", "model.members=2"],
    ["lecture=head"],
]
every_model = pytest.mark.parametrize("overrides", MODELS, ids=" ".join)
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="a CUDA graph needs a GPU")


def no_recording(func, reset, device):
    """Calls the step each time instead of a recording."""
    return func


def sample(model, n: int = 40, num_samples: int = 1, seed: int = 0, record=record, prompt=PROMPT, **settings):
    """Returns the tokens of all samples, B x n, as `generate(cuda_graph=True)` would."""
    settings = dict(temperature=1.0, top_k=None, top_p=None, window="half") | settings
    seeds = [fold_in(seed, i) for i in range(num_samples)]
    with torch.no_grad():
        sampler = GraphSampler(model, seeds, record=record, **settings)
    return torch.stack(list(sampler.sample(prompt.repeat(num_samples, 1), n)), dim=1)


def sample_without_graph(model, n: int = 40, prompt=PROMPT, **settings) -> torch.Tensor:
    return torch.stack(list(generate(model, prompt, n, **settings)), dim=1)


@pytest.mark.parametrize("window", ["half", "exact"])
@pytest.mark.parametrize("recorder", [no_recording, record])
@every_model
def test_greedy_tokens_are_equal_with_and_without_a_graph(overrides, recorder, window):
    model = build_model(overrides)
    for prompt in (PROMPT, torch.tensor([5]), torch.arange(20) % 11):
        settings = dict(temperature=0, window=window, num_samples=2, prompt=prompt)
        assert torch.equal(sample(model, record=recorder, **settings), sample_without_graph(model, **settings))


@pytest.mark.parametrize("block_size", [1, 2, 3])
def test_greedy_tokens_are_equal_for_short_blocks(block_size):
    model = build_model(["model=gpt_modern"], block_size=block_size)
    assert torch.equal(sample(model, temperature=0), sample_without_graph(model, temperature=0))


@every_model
def test_a_replay_samples_the_same_tokens_as_the_step(overrides):
    model = build_model(overrides)
    settings = dict(num_samples=2, top_k=7, top_p=0.9, temperature=0.8, seed=3)
    assert torch.equal(sample(model, record=record, **settings), sample(model, record=no_recording, **settings))


def test_the_step_is_replayed_except_when_the_window_is_cropped():
    replays = []

    def count_replays(func, reset, device):
        return lambda: replays.append(None) or func()

    sample(build_model(["model=gpt_nano"]), n=30, record=count_replays)
    # The prompt of 3 tokens and 13 new ones fill the block of 16; each later prefill has 8 tokens, and 8 follow.
    assert len(replays) == 30 - 1 - 2


def test_samples_follow_the_softmax_in_prefills_and_in_replays():
    model, num_samples = build_model(["model=gpt_modern"]), 4000
    new_BT = sample(model, n=2, num_samples=num_samples, temperature=0.7, seed=1)
    first_V = (model(PROMPT[None])[0, -1] / 0.7).softmax(dim=-1)
    texts_BT = torch.cat((PROMPT.repeat(11, 1), torch.arange(11)[:, None]), dim=1)
    second_V = first_V @ (model(texts_BT)[:, -1] / 0.7).softmax(dim=-1)
    for new_B, expected_V in zip(new_BT.T, (first_V, second_V), strict=True):
        counts_V = torch.bincount(new_B, minlength=11)
        chi_square = ((counts_V - num_samples * expected_V) ** 2 / (num_samples * expected_V)).sum()
        assert chi_square < 29.6  # the 0.999 quantile with 10 degrees of freedom


def test_the_noise_is_independent_between_samples_and_tokens():
    model = build_model(["model=gpt_nano"])
    model.head.weight.zero_()  # all tokens are equally likely
    new_BT = sample(model, n=400, num_samples=2)
    counts_BV = torch.stack([torch.bincount(new_T, minlength=11) for new_T in new_BT])
    assert (counts_BV - 400 / 11).abs().max() < 5 * (400 / 11) ** 0.5
    assert (new_BT[0] == new_BT[1]).float().mean() < 0.2
    assert (new_BT[:, :-8] == new_BT[:, 8:]).float().mean() < 0.2  # the noise is new after each prefill


def test_a_sample_does_not_depend_on_num_samples():
    model = build_model(["model=gpt_modern"])
    one, three = sample(model, seed=9), sample(model, seed=9, num_samples=3)
    assert torch.equal(one, three[:1])
    assert len({tuple(row.tolist()) for row in three}) == 3
    assert not torch.equal(one, sample(model, seed=10))


def test_the_global_random_state_is_unchanged():
    model, before = build_model(["model=gpt_nano"]), torch.get_rng_state()
    sample(model)
    assert torch.equal(before, torch.get_rng_state())


def test_top_k_and_top_p_are_respected():
    model = build_model(["model=gpt_modern"])
    greedy = sample(model, temperature=0)
    assert torch.equal(sample(model, top_k=1), greedy)
    assert torch.equal(sample(model, top_p=1e-6), greedy)
    assert torch.equal(sample(model, top_k=100, top_p=1.0), sample(model))
    probabilities_V = model(PROMPT[None])[0, -1].softmax(dim=-1)
    best = set(probabilities_V.topk(3).indices.tolist())
    assert set(sample(model, n=1, num_samples=2000, top_k=3).flatten().tolist()) == best


def test_returned_tokens_are_not_overwritten_by_later_steps():
    model = build_model(["model=gpt_nano"])
    tokens = list(GraphSampler(model, [1], 0, None, None, "half", record=no_recording).sample(PROMPT[None], 20))
    assert len({token.item() for token in tokens}) > 1


def test_generate_passes_its_settings_to_the_sampler(monkeypatch):
    model = build_model(["model=gpt_modern"])
    monkeypatch.setattr(cuda_graph, "check", lambda model, quantize: None)
    monkeypatch.setattr(cuda_graph, "GraphSampler", lambda *args: GraphSampler(*args, record=record))
    settings = dict(temperature=0.7, top_k=5, top_p=0.9, num_samples=2, seed=4, window="exact")
    assert torch.equal(sample_without_graph(model, cuda_graph=True, **settings), sample(model, **settings))


def test_cuda_graph_on_the_cpu_raises_an_error_that_suggests_a_gpu(run_cli, finished):
    with pytest.raises(UserError, match="device=cuda"):
        chargpt.load(finished).generate("The", 5, cuda_graph=True)
    outcome = run_cli("sample", f"run={finished}", "cuda_graph=true")
    assert outcome.code == 2
    assert outcome.out == ""
    assert "device=cuda" in outcome.err
    assert len(outcome.err.splitlines()) == 1


@pytest.mark.parametrize(("quantize", "hint"), [("int8", "quantize=int8"), (None, "own components")])
def test_unsupported_models_and_settings_raise_an_error(monkeypatch, quantize, hint):
    monkeypatch.setattr(Bigram, "device", torch.device("cuda"))
    with pytest.raises(UserError, match=hint):
        generate(Bigram(11), PROMPT, 5, quantize=quantize, cuda_graph=True)


@needs_gpu
@pytest.mark.parametrize("window", ["half", "exact"])
@every_model
def test_greedy_tokens_on_a_gpu_are_equal_to_those_on_the_cpu(overrides, window):
    model = build_model(overrides)
    settings = dict(temperature=0, window=window, num_samples=2)
    expected = sample_without_graph(model, **settings)
    assert torch.equal(sample_without_graph(model.cuda(), cuda_graph=True, **settings), expected)


@needs_gpu
@every_model
def test_a_graph_on_a_gpu_samples_the_same_tokens_as_the_step(overrides):
    model = build_model(overrides).cuda()
    settings = dict(num_samples=3, top_k=7, top_p=0.9, temperature=0.8, seed=3)
    expected = sample(model, record=no_recording, **settings)
    assert torch.equal(sample_without_graph(model, cuda_graph=True, **settings), expected)
    one = sample_without_graph(model, cuda_graph=True, **settings | dict(num_samples=1))
    assert torch.equal(one, expected[:1])
