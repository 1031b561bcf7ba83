"""Speculative sampling gives the text of sampling without drafts, with fewer passes."""

import math
from pathlib import Path

import pytest
import torch

import chargpt
from chargpt.errors import UserError
from chargpt.inference import generate as module
from chargpt.inference.generate import generate
from chargpt.inference.ngram import NGramModel
from chargpt.inference.speculative import MAX_TEXTS, NUM_DRAFTS, SpeculativeSampler
from chargpt.inference.verify_step import VerifyStep
from tests.inference.architectures import build_model
from tests.inference.test_decode import ARCHITECTURES
from tests.training import run_artifacts

PROMPT = torch.tensor([1, 2, 3])
MODELS = [["model=gpt_modern"], ["model=gpt_nano"], ["model=gpt_ensemble", "model.members=2"]]
LONG = 60  # tokens: the block of 16 is exceeded several times


def ngram(seed: int = 0) -> NGramModel:
    text = torch.randint(11, (300,), generator=torch.Generator().manual_seed(seed)).cumsum(0) % 11
    return NGramModel.count(text, 11, 10**6)


def tokens(model, prompt=PROMPT, n: int = LONG, **settings) -> torch.Tensor:
    """Tokens of all samples, B x n."""
    return torch.stack(list(generate(model, prompt, n, **settings)), dim=1)


@pytest.fixture
def passes(monkeypatch) -> list[int]:
    """Has an entry for each pass of the model that verifies drafts."""
    counted, extend = [], SpeculativeSampler._extend

    def count(self):
        counted.append(1)
        return extend(self)

    monkeypatch.setattr(SpeculativeSampler, "_extend", count)
    return counted


@pytest.mark.parametrize("batch_size", [pytest.param(1, marks=pytest.mark.slow), 3])
@pytest.mark.parametrize("overrides", ARCHITECTURES, ids=" ".join)
def test_the_logits_of_several_tokens_are_those_of_the_forward_pass(overrides, batch_size):
    model = build_model(overrides)
    draw = torch.Generator().manual_seed(1)
    tokens_BT = torch.randint(11, (batch_size, 16), generator=draw)
    step = VerifyStep.create(model, batch_size, 4)
    starts = [2, 0, 9][:batch_size]
    for row, start in enumerate(starts):
        step.fill(row, tokens_BT[row, :start])
    for _ in range(2):
        new = torch.stack([tokens_BT[row, start : start + 4] for row, start in enumerate(starts)])
        previous = [tokens_BT[row, :start].tolist() for row, start in enumerate(starts)]
        logits_BRV = step(new, starts, previous)
        for row, start in enumerate(starts):
            expected = model(tokens_BT[row : row + 1, : start + 4])[0, start:]
            torch.testing.assert_close(logits_BRV[row], expected, atol=1e-4, rtol=3e-5)
        starts = [start + 3 for start in starts]  # the last token was rejected


@pytest.mark.parametrize("num_samples", [1, 3])
@pytest.mark.parametrize(
    "settings",
    [
        dict(temperature=1.0),
        pytest.param(dict(temperature=0), marks=pytest.mark.slow),
        pytest.param(dict(temperature=0.7, top_k=4), marks=pytest.mark.slow),
        dict(temperature=1.3, top_p=0.8),
    ],
    ids=str,
)
@pytest.mark.parametrize("overrides", MODELS, ids=" ".join)
def test_the_tokens_are_those_without_drafts(overrides, settings, num_samples, passes):
    model = build_model(overrides)
    settings |= dict(num_samples=num_samples, seed=4)
    plain = tokens(model, **settings)
    assert not passes
    assert torch.equal(tokens(model, **settings, draft=ngram()), plain)
    assert passes


@pytest.mark.parametrize("length", [1, 15, 16, 40])
def test_prompts_of_any_length(length):
    model = build_model(["model=gpt_nano"])
    prompt = torch.arange(length) % 11
    assert torch.equal(tokens(model, prompt, draft=ngram()), tokens(model, prompt))


def test_a_block_of_one_token():
    model = build_model(["model=gpt_nano"], block_size=1)
    assert torch.equal(tokens(model, draft=ngram()), tokens(model))


def test_another_draft_model_changes_the_number_of_passes_and_not_the_tokens(passes):
    model = build_model(["model=gpt_nano"])
    plain = tokens(model, n=200, num_samples=2)
    counts = []
    for draft in (ngram(0), ngram(1), NGramModel.count(plain.flatten(), 11, 10**6)):
        del passes[:]
        assert torch.equal(tokens(model, n=200, num_samples=2, draft=draft), plain)
        counts.append(len(passes))
    assert counts[2] < min(counts[:2]) <= 200, "the last one has seen the text"
    assert counts[2] >= 200 / (NUM_DRAFTS + 1)


def sample_two(model, seeds: range) -> list[torch.Tensor]:
    return list(SpeculativeSampler(model, ngram(), PROMPT, list(seeds), 0.8, None, None).sample(2))


@pytest.mark.slow
def test_the_tokens_follow_the_distribution_of_the_model():
    """Pearson's chi-squared test of pairs of tokens, over texts with different seeds."""
    model, count = build_model(["model=gpt_nano"]), 3000
    batches = [sample_two(model, range(seed, seed + 300)) for seed in range(0, count, 300)]
    first_N, second_N = (torch.cat(tokens_N) for tokens_N in zip(*batches, strict=True))
    with torch.no_grad():
        first_V = (model(PROMPT[None])[0, -1] / 0.8).softmax(-1)
        contexts = torch.stack([torch.cat((PROMPT, torch.tensor([token]))) for token in range(11)])
        second_VV = (model(contexts)[:, -1] / 0.8).softmax(-1)
    expected = (first_V[:, None] * second_VV).flatten() * count
    observed = torch.bincount(first_N * 11 + second_N, minlength=121)
    common = expected >= 5
    rest = expected[~common].sum()
    assert abs(observed[~common].sum() - rest) <= 5 * rest.sqrt() + 1
    expected, observed = expected[common], observed[common]
    statistic, freedom = ((observed - expected) ** 2 / expected).sum().item(), len(expected) - 1
    assert abs(statistic - freedom) < 4 * math.sqrt(2 * freedom), "four standard deviations of the statistic"


def test_no_tokens():
    assert list(generate(build_model(["model=gpt_nano"]), PROMPT, 0, draft=ngram())) == []


def test_drafts_are_not_used_where_they_cannot_be_verified(passes, monkeypatch):
    model = build_model(["model=gpt_nano"])
    exact = tokens(model, window="exact", draft=ngram())
    assert torch.equal(exact, tokens(model, window="exact"))
    tokens(model, num_samples=MAX_TEXTS + 1, draft=ngram())
    monkeypatch.setattr(module, "supports_verification", lambda model: False)
    tokens(model, draft=ngram())
    assert not passes


def test_int8_weights(passes):
    model = build_model(["model=gpt_nano"], n_embd=96)
    plain = tokens(model, quantize="int8")
    assert torch.equal(tokens(model, quantize="int8", draft=ngram()), plain)
    assert passes
    with pytest.raises(UserError, match="multiples of 32"):
        tokens(build_model(["model=gpt_nano"]), quantize="int8", draft=ngram())


# Runs


def test_a_run_writes_the_draft_model_within_the_limits(finished):
    file = finished / "checkpoints" / "draft.safetensors"
    weights = sum(p.nbytes for p in chargpt.load(finished).model.parameters())
    draft = chargpt.load(finished).draft
    assert draft.num_bytes <= 0.1 * weights
    assert file.stat().st_size <= 0.1 * weights + 4096
    assert run_artifacts.metrics(finished)["steps"] == 20


def test_sample_and_python_api_use_it_unless_they_are_told_not_to(run_cli, finished, passes):
    arguments = [f"run={finished}", "max_new_tokens=100", "num_samples=2"]
    fast = run_cli("sample", *arguments)
    assert fast.code == 0 and passes
    del passes[:]
    assert run_cli("sample", *arguments, "speculative=false").out == fast.out
    assert not passes
    trained = chargpt.load(finished)
    assert trained.generate("The", 50) == trained.generate("The", 50, speculative=False)
    assert len(passes) < 50


def test_a_damaged_draft_model_is_left_out(run_cli, finished, tmp_path: Path, caplog):
    folder = tmp_path / "run" / "checkpoints"
    folder.mkdir(parents=True)
    (folder / "best.ckpt").write_bytes((finished / "checkpoints" / "best.ckpt").read_bytes())
    absent = run_cli("sample", "run=run", "max_new_tokens=50")
    (folder / "draft.safetensors").write_bytes(b"damaged")
    damaged = run_cli("sample", "run=run", "max_new_tokens=50")
    assert absent.code == damaged.code == 0
    assert absent.out == damaged.out
    assert "draft.safetensors is damaged" in caplog.text


def test_an_export_has_it_in_a_file_next_to_it_unless_it_is_left_out(run_cli, finished, tmp_path: Path, passes):
    export = ["export", f"run={finished}", "file=model.safetensors"]
    file = tmp_path / "model.draft.safetensors"
    expected = chargpt.load(finished).generate("The", 60, seed=2)
    for arguments, exists in (([], True), (["draft=false"], False)):
        assert run_cli(*export, *arguments).code == 0
        assert file.exists() == exists
        del passes[:]
        exported = chargpt.load(tmp_path / "model.safetensors")
        assert exported.generate("The", 60, seed=2) == expected
        assert bool(passes) == (exported.draft is not None) == exists
