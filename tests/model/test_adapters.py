"""Modules of other projects as language models: any `nn.Module`, nanoGPT's `GPT`, and Hugging Face's GPT-2."""

import contextlib
import importlib.util
import io
import os
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from chargpt.errors import UserError
from chargpt.inference.generate import generate
from chargpt.model.adapters import HuggingFace, ModuleAdapter, NanoGPT
from chargpt.optim.muon import muon

V, T, C = 11, 8, 4
TOKENS_BT = torch.randint(V, (2, T), generator=torch.Generator().manual_seed(0))


class Recurrent(nn.Module):
    def __init__(self, bidirectional: bool = False):
        super().__init__()
        self.embedding = nn.Embedding(V, C)
        self.gru = nn.GRU(C, C, batch_first=True, bidirectional=bidirectional)
        self.head = nn.Linear(2 * C if bidirectional else C, V)

    def forward(self, tokens_BT):
        return self.head(self.gru(self.embedding(tokens_BT))[0])


class Tied(nn.Module):
    """Has as many channels as tokens, so that a hidden layer has the shape of the head."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(V, V)
        self.hidden = nn.Linear(V, V)
        self.norm = nn.LayerNorm(V)
        self.head = nn.Linear(V, V, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens_BT):
        return self.head(self.norm(self.hidden(self.embedding(tokens_BT))))


@dataclass
class Config:
    vocab_size: int = V
    block_size: int = T


class LikeNanoGPT(nn.Module):
    """Returns (logits, loss): without targets, the logits of the last position only."""

    def __init__(self, config: Config):
        super().__init__()
        self.module = Tied()
        print("number of parameters: 0.00M")

    def forward(self, tokens_BT, targets_BT=None):
        logits_BTV = self.module(tokens_BT)
        if targets_BT is None:
            return logits_BTV[:, [-1]], None
        return logits_BTV, F.cross_entropy(logits_BTV.view(-1, V), targets_BT.view(-1), ignore_index=-1)


def adapt(module: nn.Module) -> ModuleAdapter:
    return ModuleAdapter(module, V, T).eval()


def test_the_logits_are_those_of_the_module():
    module = Recurrent()
    assert torch.equal(adapt(module)(TOKENS_BT), module(TOKENS_BT))


def test_without_a_kv_cache_the_context_is_recomputed():
    model = adapt(Recurrent())
    assert model.new_cache(1) is None
    sampled = torch.cat([*generate(model, TOKENS_BT[0, :3], 12, temperature=0, window="exact")])
    text = TOKENS_BT[0, :3]
    for _ in range(12):
        text = torch.cat((text, model(text[None, -T:])[0, -1:].argmax(-1)))
    assert sampled.tolist() == text[3:].tolist()


def test_int8_is_refused():
    with pytest.raises(UserError, match="quantize=int8: it supports only"):
        generate(adapt(Recurrent()), TOKENS_BT[0], 1, quantize="int8")


@pytest.mark.parametrize("bidirectional", [False, True])
def test_is_causal(bidirectional):
    assert adapt(Recurrent(bidirectional)).is_causal() == (not bidirectional)


def test_the_matrices_for_muon_are_those_between_embedding_and_head():
    module = Recurrent()
    matrices = [p for p, _ in adapt(module).matrix_parameters()]
    assert [id(p) for p in matrices] == [id(module.gru.weight_ih_l0), id(module.gru.weight_hh_l0)]
    tied = Tied()
    assert [id(p) for p, _ in adapt(tied).matrix_parameters()] == [id(tied.hidden.weight)]
    groups = muon(adapt(tied), lr=0.02).param_groups
    assert {group["maps"]: len(group["params"]) for group in groups} == {1: 1, 0: 4}


def test_flops_of_a_gru_equal_a_count_by_hand():
    multiplications = 2 * 3 * C * C + C * V  # three gates of input and state, and the head
    assert adapt(Recurrent()).flops_per_token() == 3 * 2 * multiplications


def test_input_embeddings_are_the_only_table_of_tokens():
    module = Recurrent()
    assert adapt(module).input_embeddings() is module.embedding.weight
    module.other = nn.Embedding(V, C)
    with pytest.raises(NotImplementedError, match="Recurrent has 2 embedding tables of tokens"):
        adapt(module).input_embeddings()


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (lambda x: (x, None), r"returns tuple \(use chargpt.model.adapters.NanoGPT\)"),
        (lambda x: type("Output", (), {"logits": x})(), r"returns Output \(use chargpt.model.adapters.HuggingFace\)"),
        (lambda x: x[:, [-1]], rf"returns shape \(1, 1, {V}\), not logits of shape \(1, {T}, {V}\)"),
        (lambda x: 5, "returns int, not logits"),
        (lambda x: x @ x, "a forward pass with 8 tokens fails"),
    ],
)
def test_another_signature_is_reported_with_its_adapter(output, message):
    class Wrapped(Recurrent):
        def forward(self, tokens_BT):
            return output(super().forward(tokens_BT))

    with pytest.raises(ValueError, match=message):
        adapt(Wrapped()).smoke_test()


def test_nanogpt_is_asked_for_the_logits_of_all_positions(capsys):
    model = NanoGPT(LikeNanoGPT, Config(), V, T).eval()
    tokens_BT = torch.arange(3 * T).reshape(3, T).remainder(V).T  # not contiguous
    logits_BTV = model(tokens_BT)
    assert logits_BTV.shape == (T, 3, V)
    assert torch.equal(logits_BTV, model.module.module(tokens_BT))
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "number of parameters: 0.00M\n")  # sample.py prints only text


def test_the_loss_of_a_token_with_the_number_of_an_ignore_index_counts():
    """nanoGPT ignores targets of -1 and Hugging Face those of -100: neither is used."""
    model = NanoGPT(LikeNanoGPT, Config(), V, T).eval()
    targets_BT = TOKENS_BT.masked_fill(TOKENS_BT == 3, -100)
    loss = F.cross_entropy(model(TOKENS_BT).flatten(0, 1), targets_BT.flatten())
    kept = targets_BT.flatten() != -100
    assert 0 < kept.sum() < kept.numel()
    expected = F.cross_entropy(model(TOKENS_BT).flatten(0, 1)[kept], TOKENS_BT.flatten()[kept])
    torch.testing.assert_close(loss, expected)


@pytest.fixture
def gpt2():
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(vocab_size=V, n_positions=T, n_layer=2, n_head=2, n_embd=C, bos_token_id=None)
    return HuggingFace(transformers.GPT2LMHeadModel, config, V, T).eval()


def test_gpt2_of_hugging_face(gpt2):
    """FLOPs by hand, causality, Muon's matrices with a tied head, and tied weights in an export."""
    gpt2.smoke_test()
    assert gpt2.is_causal()
    per_layer = 12 * C * C + 2 * T * C  # 3 + 1 + 4 + 4 matrices; queries with keys, weights with values
    assert gpt2.flops_per_token() == 3 * 2 * (2 * per_layer + C * V)
    assert len(gpt2.matrix_parameters()) == 2 * 4
    assert gpt2.input_embeddings() is gpt2.module.transformer.wte.weight
    assert [*gpt2.tied_weight_names()] == ["module.lm_head.weight"]
    assert gpt2.new_cache(1) is None


def test_a_downloaded_attention_is_refused():
    class DownloadedConfig:
        _attn_implementation = "someone/kernel"

    with pytest.raises(UserError, match="it would be downloaded; use eager or sdpa"):
        HuggingFace(Recurrent, DownloadedConfig(), V, T)


def load_nanogpt():
    """The module model.py of the nanoGPT checkout in the environment variable NANOGPT."""
    if "NANOGPT" not in os.environ:
        pytest.skip("set NANOGPT to a checkout of https://github.com/karpathy/nanoGPT")
    path = Path(os.environ["NANOGPT"]) / "model.py"
    spec = importlib.util.spec_from_file_location("nanogpt_model", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_nanogpt_itself():
    nanogpt = load_nanogpt()
    config = nanogpt.GPTConfig(vocab_size=V, block_size=T, n_layer=2, n_head=2, n_embd=C, bias=False)
    with contextlib.redirect_stderr(io.StringIO()):
        model = NanoGPT(nanogpt.GPT, config, V, T).eval()
    model.smoke_test()
    assert model.is_causal()
    assert model.flops_per_token() == 3 * 2 * (2 * (12 * C * C + 2 * T * C) + C * V)
    assert len(model.matrix_parameters()) == 2 * 4
    inputs_BT, targets_BT = TOKENS_BT[:, :-1], TOKENS_BT[:, 1:]
    _, loss = model.module(inputs_BT, targets_BT.contiguous())
    torch.testing.assert_close(F.cross_entropy(model(inputs_BT).flatten(0, 1), targets_BT.flatten()), loss)
