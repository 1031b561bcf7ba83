"""Sampling by replaying a recorded step. On a CPU a tape of operations stands in for the CUDA graph."""

import pytest
import torch

import chargpt
from chargpt.errors import UserError
from chargpt.inference import cuda_graph
from chargpt.inference.cuda_graph import GraphSampler
from chargpt.inference.generate import generate
from chargpt.model.bigram import Bigram
from chargpt.utils.seeding import fold_in
from tests.inference.architectures import made
from tests.inference.tape import record

PROMPT = torch.tensor([1, 2, 3])
MODELS = [
    ["model=gpt_nano"],
    ["model=gpt_modern"],
    ["model=gpt_modern", "model/value_residual=residual", "model/unet_skips=u_net", "model/softcap=soft_cap"],
    ["model=gpt_ensemble", "model.members=2"],
    ["+lecture=head"],
]
every_model = pytest.mark.parametrize("words", MODELS, ids=" ".join)
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="a CUDA graph needs a GPU")


def plain(run, reset, device):
    """Nothing is recorded: the step is run each time."""
    return run


def drawn(model, n: int = 40, num_samples: int = 1, seed: int = 0, record=record, prompt=PROMPT, **settings):
    """The tokens of all samples, B x n, as `generate(cuda_graph=True)` makes them."""
    settings = dict(temperature=1.0, top_k=None, top_p=None, window="half") | settings
    seeds = [fold_in(seed, sample) for sample in range(num_samples)]
    with torch.no_grad():
        sampler = GraphSampler(model, seeds, record=record, **settings)
    return torch.stack(list(sampler.sample(prompt.repeat(num_samples, 1), n)), dim=1)


def without(model, n: int = 40, prompt=PROMPT, **settings) -> torch.Tensor:
    return torch.stack(list(generate(model, prompt, n, **settings)), dim=1)


@pytest.mark.parametrize("window", ["half", "exact"])
@pytest.mark.parametrize("recorder", [plain, record])
@every_model
def test_greedy_tokens_are_those_without_a_graph(words, recorder, window):
    model = made(words)
    for prompt in (PROMPT, torch.tensor([5]), torch.arange(20) % 11):
        settings = dict(temperature=0, window=window, num_samples=2, prompt=prompt)
        assert torch.equal(drawn(model, record=recorder, **settings), without(model, **settings))


@pytest.mark.parametrize("block_size", [1, 2, 3])
def test_blocks_too_short_to_halve(block_size):
    model = made(["model=gpt_modern"], block_size=block_size)
    assert torch.equal(drawn(model, temperature=0), without(model, temperature=0))


@every_model
def test_a_replay_draws_what_running_the_step_draws(words):
    model = made(words)
    settings = dict(num_samples=2, top_k=7, top_p=0.9, temperature=0.8, seed=3)
    assert torch.equal(drawn(model, record=record, **settings), drawn(model, record=plain, **settings))


def test_the_step_is_replayed_except_where_the_window_moves():
    replays = []

    def counted(run, reset, device):
        return lambda: replays.append(None) or run()

    drawn(made(["model=gpt_nano"]), n=30, record=counted)
    # The prompt of 3 and 13 tokens fill the block of 16; each later prefill is of 8 tokens, and 8 follow.
    assert len(replays) == 30 - 1 - 2


def test_draws_follow_the_softmax_in_prefills_and_in_replays():
    model, samples = made(["model=gpt_modern"]), 4000
    new_BT = drawn(model, n=2, num_samples=samples, temperature=0.7, seed=1)
    first_V = (model(PROMPT[None])[0, -1] / 0.7).softmax(dim=-1)
    texts_BT = torch.cat((PROMPT.repeat(11, 1), torch.arange(11)[:, None]), dim=1)
    second_V = first_V @ (model(texts_BT)[:, -1] / 0.7).softmax(dim=-1)
    for new_B, expected_V in zip(new_BT.T, (first_V, second_V), strict=True):
        counts_V = torch.bincount(new_B, minlength=11)
        chi_square = ((counts_V - samples * expected_V) ** 2 / (samples * expected_V)).sum()
        assert chi_square < 29.6  # the 0.999 quantile with 10 degrees of freedom


def test_a_sample_has_noise_of_its_own_for_each_token():
    model = made(["model=gpt_nano"])
    model.head.weight.zero_()  # every token is as likely
    new_BT = drawn(model, n=400, num_samples=2)
    counts_BV = torch.stack([torch.bincount(new_T, minlength=11) for new_T in new_BT])
    assert (counts_BV - 400 / 11).abs().max() < 5 * (400 / 11) ** 0.5
    assert (new_BT[0] == new_BT[1]).float().mean() < 0.2
    assert (new_BT[:, :-8] == new_BT[:, 8:]).float().mean() < 0.2  # the noise is new after each prefill


def test_a_sample_does_not_depend_on_how_many_are_drawn_beside_it():
    model = made(["model=gpt_modern"])
    one, three = drawn(model, seed=9), drawn(model, seed=9, num_samples=3)
    assert torch.equal(one, three[:1])
    assert len({tuple(row.tolist()) for row in three}) == 3
    assert not torch.equal(one, drawn(model, seed=10))


def test_the_global_random_state_is_left_alone():
    model, before = made(["model=gpt_nano"]), torch.get_rng_state()
    drawn(model)
    assert torch.equal(before, torch.get_rng_state())


def test_top_k_and_top_p_are_respected():
    model = made(["model=gpt_modern"])
    greedy = drawn(model, temperature=0)
    assert torch.equal(drawn(model, top_k=1), greedy)
    assert torch.equal(drawn(model, top_p=1e-6), greedy)
    assert torch.equal(drawn(model, top_k=100, top_p=1.0), drawn(model))
    probabilities_V = model(PROMPT[None])[0, -1].softmax(dim=-1)
    best = set(probabilities_V.topk(3).indices.tolist())
    assert set(drawn(model, n=1, num_samples=2000, top_k=3).flatten().tolist()) == best


def test_the_tokens_are_the_callers_to_keep():
    model = made(["model=gpt_nano"])
    kept = list(GraphSampler(model, [1], 0, None, None, "half", record=plain).sample(PROMPT[None], 20))
    assert len({token.item() for token in kept}) > 1


def test_settings_go_from_generate_to_the_sampler(monkeypatch):
    model = made(["model=gpt_modern"])
    monkeypatch.setattr(cuda_graph, "check", lambda model, quantize: None)
    monkeypatch.setattr(cuda_graph, "GraphSampler", lambda *args: GraphSampler(*args, record=record))
    settings = dict(temperature=0.7, top_k=5, top_p=0.9, num_samples=2, seed=4, window="exact")
    assert torch.equal(without(model, cuda_graph=True, **settings), drawn(model, **settings))


def test_another_device_is_refused_with_what_to_do(run_cli, finished):
    with pytest.raises(UserError, match="device=cuda"):
        chargpt.load(finished).generate("The", 5, cuda_graph=True)
    outcome = run_cli("sample", f"run={finished}", "cuda_graph=true")
    assert outcome.code == 2
    assert outcome.out == ""
    assert "device=cuda" in outcome.err
    assert len(outcome.err.splitlines()) == 1


@pytest.mark.parametrize(("quantize", "hint"), [("int8", "quantize=int8"), (None, "own parts")])
def test_what_a_graph_cannot_do_is_refused(monkeypatch, quantize, hint):
    monkeypatch.setattr(Bigram, "device", torch.device("cuda"))
    with pytest.raises(UserError, match=hint):
        generate(Bigram(11), PROMPT, 5, quantize=quantize, cuda_graph=True)


@needs_gpu
@pytest.mark.parametrize("window", ["half", "exact"])
@every_model
def test_on_a_gpu_greedy_tokens_are_those_of_the_cpu(words, window):
    model = made(words)
    settings = dict(temperature=0, window=window, num_samples=2)
    expected = without(model, **settings)
    assert torch.equal(without(model.cuda(), cuda_graph=True, **settings), expected)


@needs_gpu
@every_model
def test_on_a_gpu_a_graph_draws_what_running_the_step_draws(words):
    model = made(words).cuda()
    settings = dict(num_samples=3, top_k=7, top_p=0.9, temperature=0.8, seed=3)
    expected = drawn(model, record=plain, **settings)
    assert torch.equal(without(model, cuda_graph=True, **settings), expected)
    one = without(model, cuda_graph=True, **settings | dict(num_samples=1))
    assert torch.equal(one, expected[:1])
